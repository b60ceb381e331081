from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.shards import decode_labels, encode_labels, pack, read_samples
from fastssl.sources import RenderSource, open_source
from fastssl.sources.render import RenderRun, is_finished, write_room, write_run

HEIGHT, WIDTH = 20, 30
RUN = RenderRun(seed=1, size=32, spp=4, variant="llvm_ad_rgb", mitsuba="3.9.1", fastssl="0.1.0")


def record(key: str, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(HEIGHT, WIDTH, 3))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    depth = rng.uniform(0.5, 60, (HEIGHT, WIDTH))
    normal[2:4], depth[3:5] = 0, 0
    return Record(
        key=key,
        image=rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        depth=depth.astype(np.float32),
        normal=normal.astype(np.float32),
        instance=rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.int32),
        camera=Intrinsics(fx=40.1, fy=41.7, cx=15.3, cy=9.9),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path, RUN)
    for seed, key in enumerate(("room_b", "room_a", "room_c")):
        write_room(tmp_path, record(key, seed))
    return tmp_path


def test_what_is_written_is_read_again(folder: Path) -> None:
    source = open_source(folder)
    assert (source.layout, source.domain, source.path, source.licence) == ("render", "synthetic", folder, "CC0-1.0")
    assert list(source.references()) == ["room_a", "room_b", "room_c"]
    written, read = record("room_b", 0), source.read("room_b")
    assert read.key == "room_b"
    assert np.array_equal(read.image, written.image)
    assert np.array_equal(read.instance, written.instance)
    assert read.camera == written.camera
    assert np.abs(read.depth - written.depth).max() <= 0.00051
    assert np.array_equal(read.depth == 0, written.depth == 0)
    known = written.normal.any(axis=2)
    assert np.array_equal(read.normal.any(axis=2), known)
    cosine = (read.normal * written.normal).sum(axis=2)[known]
    assert np.degrees(np.arccos(np.minimum(cosine, 1))).max() < 0.4
    assert np.allclose(np.linalg.norm(read.normal[known], axis=1), 1, atol=1e-6)


def test_other_programs_see_pictures(folder: Path) -> None:
    """The codes as the format's description has them, by Pillow alone."""
    written = record("room_b", 0)
    depth = np.array(Image.open(folder / "room_b_depth.png"))
    assert np.array_equal(depth, np.rint(written.depth.astype(np.float64) * 1000))
    normal = np.array(Image.open(folder / "room_b_normal.png"))
    assert normal[10, 10].tolist() == np.rint(127.5 * (written.normal[10, 10].astype(np.float64) + 1)).tolist()
    assert not normal[2].any()
    assert json.loads((folder / "room_b.json").read_text())["camera"]["fy"] == 41.7


def test_packing_keeps_depth_and_nearly_the_normals(folder: Path) -> None:
    read, written = RenderSource(folder).read("room_b"), record("room_b", 0)
    edge = np.zeros((HEIGHT, WIDTH), dtype=bool)
    depth, normal, _, _ = decode_labels(encode_labels(read.depth, read.normal, edge), HEIGHT, WIDTH)
    assert np.array_equal(depth, read.depth)
    assert np.degrees(np.linalg.norm(normal - written.normal, axis=2)).max() < 0.8


def test_a_folder_of_rooms_packs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("packed")
    manifest = pack(open_source(folder), out, size=16)
    assert (manifest.samples, manifest.licence, manifest.domain) == (3, "CC0-1.0", "synthetic")
    assert [sample.key for sample in read_samples(out)] == ["room_a", "room_b", "room_c"]


def test_a_room_counts_once_it_is_complete(folder: Path) -> None:
    assert is_finished(folder, "room_a")
    (folder / "room_a.json").unlink()
    assert not is_finished(folder, "room_a")
    assert list(RenderSource(folder).references()) == ["room_b", "room_c"]
    (folder / "room_b_normal.png").unlink()
    assert not is_finished(folder, "room_b")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def shrink(path: Path) -> None:
    with Image.open(path) as image:
        smaller = image.resize((WIDTH - 1, HEIGHT), Image.Resampling.NEAREST)
    smaller.save(path)


def gray(path: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(path)


@pytest.mark.parametrize("name", ["rgb", "depth", "normal", "instance"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "missing"),
        (shorten, "does not decode"),
        (lambda path: path.write_bytes(b""), "does not decode"),
        (lambda path: path.write_text("no picture"), "does not decode"),
        (shrink, "29 x 20"),
        (gray, "mode L"),
    ],
    ids=["missing", "cut", "empty", "text", "smaller", "gray"],
)
def test_a_damaged_plane_is_an_error_that_names_it(
    folder: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    source = RenderSource(folder)
    damage(folder / f"room_c_{name}.png")
    with pytest.raises(DataError, match=message) as caught:
        source.read("room_c")
    assert f"room_c_{name}.png" in str(caught.value)
    assert source.read("room_a").key == "room_a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("{}", "Field required"),
        ('{"width": 0, "height": 20, "camera": {"fx": 1, "fy": 1, "cx": 0, "cy": 0}}', "width"),
        ('{"width": 30, "height": 20, "camera": {"fx": -1, "fy": 1, "cx": 0, "cy": 0}}', "camera.fx"),
        ('{"width": 30, "height": 20, "camera": {"fx": NaN, "fy": 1, "cx": 0, "cy": 0}}', "damaged"),
    ],
)
def test_a_damaged_description_is_an_error_that_names_it(folder: Path, text: str, message: str) -> None:
    (folder / "room_c.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        RenderSource(folder).read("room_c")
    assert "room_c.json" in str(caught.value)


def test_an_unknown_room_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"room_z\.json"):
        RenderSource(folder).read("room_z")


def test_folders_that_are_not_of_this_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        RenderSource(tmp_path / "missing")
    with pytest.raises(DataError, match=r"render\.json"):
        RenderSource(tmp_path)
    (tmp_path / "render.json").write_text('{"format": "fastssl-render-9"}')
    with pytest.raises(DataError, match="another version"):
        RenderSource(tmp_path)
    write_run(tmp_path, RUN)
    with pytest.raises(DataError, match="no finished room"):
        RenderSource(tmp_path)


@pytest.mark.parametrize(
    ("plane", "value"), [("depth", 70.0), ("depth", float("nan")), ("instance", 70000), ("instance", -1)]
)
def test_what_sixteen_bits_cannot_hold_is_not_written(tmp_path: Path, plane: str, value: float) -> None:
    room = record("room_x")
    getattr(room, plane)[0, 0] = value
    with pytest.raises(ValueError, match=plane):
        write_room(tmp_path, room)
    assert not list(tmp_path.iterdir())


def test_a_photo_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not synthetic"):
        write_room(tmp_path, Record(key="x", image=record("x").image))
