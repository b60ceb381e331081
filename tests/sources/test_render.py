from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources.damage import DAMAGES
from sources.trees.render import HEIGHT, RUN, WIDTH, record, write_tree

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.shards import pack, read_samples
from fastssl.sources import RenderSource, open_source
from fastssl.sources.render import is_finished, write_room, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path)


def test_what_is_written_is_read_again(folder: Path) -> None:
    source = open_source(folder)
    assert (source.layout, source.domain, source.path, source.licence) == ("render", "synthetic", folder, "CC0-1.0")
    assert list(source.references()) == ["room_a", "room_b", "room_c"]
    written, read = record("room_b", 0), source.read("room_b")
    assert read.key == "room_b"
    assert np.array_equal(read.image, written.image)
    assert np.array_equal(read.instance, written.instance)
    assert read.camera == written.camera
    assert np.array_equal(read.depth, np.rint(written.depth.astype(np.float64) * 1000))
    known = written.normal.any(axis=2)
    assert np.array_equal(read.normal.any(axis=2), known)
    codes = np.rint(127.5 * (written.normal.astype(np.float64) + 1)).clip(1, 255)
    assert np.array_equal(read.normal[known], codes[known])


def test_other_programs_see_pictures(folder: Path) -> None:
    """The codes as the format's description has them, by Pillow alone."""
    written = record("room_b", 0)
    depth = np.array(Image.open(folder / "room_b_depth.png"))
    assert np.array_equal(depth, np.rint(written.depth.astype(np.float64) * 1000))
    normal = np.array(Image.open(folder / "room_b_normal.png"))
    assert normal[10, 10].tolist() == np.rint(127.5 * (written.normal[10, 10].astype(np.float64) + 1)).tolist()
    assert not normal[2].any()
    assert json.loads((folder / "room_b.json").read_text())["camera"]["fy"] == 41.7


def test_packing_rounds_no_second_time(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through files and shards: normals within one rounding, 0.39 degrees, and depth within half a millimetre."""
    out, written = tmp_path_factory.mktemp("packed"), record("room_b", 0)
    pack(RenderSource(folder), out, size=16)
    rows, columns = (((np.arange(16) + 0.5) * side / 16).astype(int)[:, None] for side in (HEIGHT, WIDTH))
    seen = next(sample for sample in read_samples(out) if sample.key == "room_b")
    assert np.abs(seen.depth - written.depth[rows, columns.T]).max() <= 0.00051
    normal = written.normal[rows, columns.T]
    assert np.degrees(np.linalg.norm(seen.normal - normal, axis=2))[normal.any(axis=2)].max() < 0.4


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


def test_what_is_no_part_of_a_room_is_counted(folder: Path) -> None:
    assert RenderSource.recognise(folder) == "it has render.json"
    assert RenderSource(folder).passed_over() == {}
    (folder / "room_a.json").unlink()
    (folder / "room_d_rgb.png.partial").touch()
    (folder / "notes.txt").touch()
    (folder / ".room_e.json").touch()
    os.mkfifo(folder / "room_f.json")
    (folder / "room_g.json").mkdir()
    source = RenderSource(folder)
    assert list(source.references()) == ["room_b", "room_c"]
    assert {reason: (one.count, one.first[0]) for reason, one in source.passed_over().items()} == {
        "files ending in .partial": (1, "room_d_rgb.png.partial"),
        "files ending in .txt": (1, "notes.txt"),
        "hidden files and folders": (1, ".room_e.json"),
        "planes of rooms that are not finished": (4, "room_a_depth.png"),
        "special files (pipes, sockets, devices)": (1, "room_f.json"),
    }


def test_faults_of_the_machine_stay_what_they_are_and_pipes_are_not_waited_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = RenderSource(folder)
    for name, use in (
        ("fastssl.sources.render.open_regular", lambda: source.read("room_a")),
        ("os.scandir", lambda: list(source.references())),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, failing)
            with pytest.raises(DataError) as caught:
                use()
        assert machine_fault(caught.value) is not None
    (folder / "room_a.json").unlink()
    os.mkfifo(folder / "room_a.json")
    with pytest.raises(DataError, match=r"room_a\.json") as caught:
        source.read("room_a")
    assert machine_fault(caught.value) is None
    (folder / "render.json").unlink()
    os.mkfifo(folder / "render.json")
    assert RenderSource.recognise(folder) is None
    with pytest.raises(DataError, match=r"render\.json"):
        RenderSource(folder)


MESSAGES = {
    "missing": "missing",
    "empty": "does not decode",
    "no image": "does not decode",
    "cut short": "does not decode",
    "another size": "30 x 19",
    "another kind": "mode RGBA",
}


@pytest.mark.parametrize("name", ["rgb", "depth", "normal", "instance"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plane_is_an_error_that_names_it(folder: Path, name: str, damage: str) -> None:
    source = RenderSource(folder)
    DAMAGES[damage](folder / f"room_c_{name}.png")
    with pytest.raises(DataError, match=MESSAGES[damage]) as caught:
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
