from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sources.planes import PlaneScene, angles, assert_matches, scene

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError, UsageError
from fastssl.geometry import contours
from fastssl.shards import pack, read_samples
from fastssl.sources.structured3d import INVALID_SCENES, Structured3DSource

HEIGHT, WIDTH = 54, 96
HALF_X, HALF_Y = 0.698132, 0.440993  # half angles, as in the dataset: 40 degrees, and square pixels at 16:9
CAMERA = Intrinsics(fx=WIDTH / 2 / np.tan(HALF_X), fy=HEIGHT / 2 / np.tan(HALF_Y), cx=WIDTH / 2, cy=HEIGHT / 2)
POSE = f"-1200.5 3400.25 1500 0.6 0.8 0 0 0 1 {HALF_X} {HALF_Y} 1"
REFERENCE = "scene_00000/485142/0"
UNKNOWN = (slice(40, 46), slice(70, 80))


def folder_of(folder: Path, reference: str) -> Path:
    name, room, position = reference.split("/")
    return folder / name / "2D_rendering" / room / "perspective" / "full" / position


def codes_of(normal: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(right, down, forward) as red = forward, green = up, blue = left, in codes 128 (1 + n)."""
    channels = np.stack([normal[:, :, 2], -normal[:, :, 1], -normal[:, :, 0]], axis=2)
    return np.clip(np.rint(128 * (1 + channels)), 0, 255).astype(np.uint8)


def save(path: Path, values: NDArray[np.integer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_rendering(folder: Path, reference: str, view: PlaneScene) -> None:
    at = folder_of(folder, reference)
    depth, codes, instance = np.rint(1000 * view.z).astype(np.uint16), codes_of(view.normal), view.instance.copy()
    depth[UNKNOWN] = 0
    codes[UNKNOWN] = 127
    save(at / "rgb_rawlight.png", np.random.default_rng(0).integers(0, 256, codes.shape, dtype=np.uint8))
    save(at / "depth.png", depth)
    save(at / "normal.png", codes)
    save(at / "instance.png", instance.astype(np.uint16))
    (at / "camera_pose.txt").write_text(f"{POSE}\n")
    (at / "semantic.png").write_bytes(b"")  # not read


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_rendering(tmp_path, REFERENCE, scene(CAMERA, HEIGHT, WIDTH))
    return tmp_path


@pytest.fixture
def view() -> PlaneScene:
    return scene(CAMERA, HEIGHT, WIDTH)


def check(record: Record, view: PlaneScene) -> None:
    assert_matches(record, view)
    assert record.depth is not None
    assert record.normal is not None
    assert (record.depth == 0).sum() == 60
    assert not record.depth[UNKNOWN].any()
    assert np.array_equal(record.normal.any(axis=2), record.depth > 0)


def test_a_rendering(tree: Path, view: PlaneScene) -> None:
    source = Structured3DSource(tree)
    assert (source.layout, source.domain, source.labelled) == ("structured3d", "synthetic", True)
    assert source.licence == "Structured3D Terms of Use"
    record = source.read(REFERENCE)
    assert record.key == "scene_00000__485142__0"
    assert record.image.tolist() == np.array(Image.open(folder_of(tree, REFERENCE) / "rgb_rawlight.png")).tolist()
    check(record, view)


def test_a_rendering_of_the_datasets_own_size(tmp_path: Path) -> None:
    height, width = 720, 1280
    camera = Intrinsics(fx=640 / np.tan(HALF_X), fy=360 / np.tan(HALF_Y), cx=640, cy=360)
    view = scene(camera, height, width)
    write_rendering(tmp_path, REFERENCE, view)
    check(Structured3DSource(tmp_path).read(REFERENCE), view)
    path = folder_of(tmp_path, REFERENCE) / "normal.png"
    save(path, codes_of(view.normal * [-1, 1, 1]))
    with pytest.raises(DataError, match="do not fit its depth"):
        Structured3DSource(tmp_path).read(REFERENCE)


MISTAKES: dict[str, Callable[[Record, PlaneScene], Record]] = {
    "planar depth as a distance": lambda record, view: replace(
        record, depth=(view.z**2 / view.ray_length).astype(np.float32)
    ),
    "whole angles": lambda record, _: replace(record, camera=replace(CAMERA, fx=WIDTH / 2 / np.tan(HALF_X / 2))),
    "width and height exchanged": lambda record, _: replace(record, camera=replace(CAMERA, cx=CAMERA.cy, cy=CAMERA.cx)),
    "left for right": lambda record, _: replace(record, normal=record.normal * np.float32([-1, 1, 1])),
    "up for down": lambda record, _: replace(record, normal=record.normal * np.float32([1, -1, 1])),
    "axes swapped": lambda record, _: replace(record, normal=record.normal[:, :, [2, 1, 0]]),
    "low bytes of the depth": lambda record, _: replace(
        record, depth=(np.rint(record.depth * 1000).astype(int) & 0xFF).astype(np.float32) / 1000
    ),
    "low bytes of the instances": lambda record, _: replace(record, instance=record.instance & 0xFF),
    "high bytes of the instances": lambda record, _: replace(record, instance=record.instance >> 8),
    "unknown depth as a value": lambda record, _: replace(record, depth=np.where(record.depth, record.depth, np.nan)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_would_notice(tree: Path, view: PlaneScene, mistake: str) -> None:
    record = Structured3DSource(tree).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(MISTAKES[mistake](record, view), view)


@pytest.mark.parametrize(
    ("order", "signs", "frame"),
    [
        ((0, 1, 2), (1, 1, -1), "(blue, -green, red)"),  # a right-handed frame
        ((0, 1, 2), (-1, 1, 1), "(-blue, -green, -red)"),
        ((0, 1, 2), (1, -1, 1), "(-blue, green, red)"),
        ((0, 1, 2), (-1, -1, -1), "(blue, green, -red)"),  # normals that look away
        ((2, 1, 0), (1, 1, 1), "(-red, -green, blue)"),  # blue, green, red in the file
        ((1, 2, 0), (1, -1, 1), "(green, -red, blue)"),
    ],
)
def test_other_axes_of_the_normals_are_refused_and_named(
    tree: Path, order: tuple[int, int, int], signs: tuple[int, int, int], frame: str
) -> None:
    """The file's channels, exchanged and turned over; what would read them is named."""
    path = folder_of(tree, REFERENCE) / "normal.png"
    channels = np.array(Image.open(path)).astype(int) - 128
    channels = channels[:, :, list(order)] * np.array(signs)
    save(path, np.clip(channels + 128, 0, 255).astype(np.uint8))
    with pytest.raises(DataError, match="do not fit its depth") as error:
        Structured3DSource(tree).read(REFERENCE)
    assert error.value.where == path
    seen = str(error.value.seen)
    assert "with (-blue, -green, red);" in seen
    assert seen.endswith(f"with {frame}")


def test_normals_of_the_world_are_refused(tree: Path, view: PlaneScene) -> None:
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    path = folder_of(tree, REFERENCE) / "normal.png"
    save(path, codes_of(view.normal @ turn))
    with pytest.raises(DataError, match="do not fit its depth"):
        Structured3DSource(tree).read(REFERENCE)


def test_normals_that_fit_nowhere_are_refused(tree: Path) -> None:
    scattered = np.random.default_rng(5).normal(size=(HEIGHT, WIDTH, 3))
    save(folder_of(tree, REFERENCE) / "normal.png", codes_of(scattered / np.linalg.norm(scattered, axis=2)[:, :, None]))
    with pytest.raises(DataError, match="do not fit its depth"):
        Structured3DSource(tree).read(REFERENCE)


def test_one_wall_alone_and_no_depth_at_all_are_no_reason_to_refuse(tree: Path) -> None:
    """A frontal wall fits many frames equally well; without depth nothing can be said."""
    at = folder_of(tree, REFERENCE)
    save(at / "depth.png", np.full((HEIGHT, WIDTH), 2500, np.uint16))
    save(at / "normal.png", np.full((HEIGHT, WIDTH, 3), (0, 128, 128), np.uint8))
    record = Structured3DSource(tree).read(REFERENCE)
    assert record.normal is not None
    assert (record.normal == [0, 0, -1]).all()
    save(at / "depth.png", np.zeros((HEIGHT, WIDTH), np.uint16))
    record = Structured3DSource(tree).read(REFERENCE)
    assert record.normal is not None
    assert record.normal.any(axis=2).all()


def test_codes_that_are_no_unit_vectors_or_look_away_are_not_known(tree: Path) -> None:
    path = folder_of(tree, REFERENCE) / "normal.png"
    codes = np.array(Image.open(path))
    codes[0] = 0
    codes[1] = 128
    codes[2] = (90, 128, 128)
    codes[3] = (255, 128, 128)
    save(path, codes)
    normal = Structured3DSource(tree).read(REFERENCE).normal
    assert normal is not None
    assert not normal[:4].any()
    assert normal[4:30].any(axis=2).all()


def test_noise_in_the_depth_does_not_make_the_normals_wrong(tree: Path, view: PlaneScene) -> None:
    noisy = view.z * np.random.default_rng(2).uniform(0.9, 1.1, view.z.shape)
    noisy[:, : WIDTH // 5] = view.z[:, : WIDTH // 5]
    save(folder_of(tree, REFERENCE) / "depth.png", np.rint(1000 * noisy).astype(np.uint16))
    normal = Structured3DSource(tree).read(REFERENCE).normal
    assert normal is not None
    known = normal.any(axis=2)
    assert angles(normal, view.normal)[known].max() < 1


def test_the_background_has_a_border_too(tree: Path) -> None:
    instance = np.full((HEIGHT, WIDTH), 65535, np.uint16)
    instance[10:20, 10:20] = 300
    save(folder_of(tree, REFERENCE) / "instance.png", instance)
    read = Structured3DSource(tree).read(REFERENCE).instance
    assert read is not None
    assert read.max() == 65535
    assert contours(read).sum() == 39  # ten on each side, two of which share a pixel


def empty_rendering(folder: Path, reference: str) -> None:
    folder_of(folder, reference).mkdir(parents=True)


def test_references_are_sorted_and_invalid_scenes_left_out(tmp_path: Path) -> None:
    references = [
        *("scene_00000/485142/0", "scene_00000/485142/1", "scene_00000/485142/10", "scene_00000/490854/2"),
        *("scene_02999/7/0", "scene_03000/7/0", "scene_03249/7/0", "scene_03250/7/0", "scene_03499/7/0"),
    ]
    for reference in references[::-1]:
        empty_rendering(tmp_path, reference)
    for number in INVALID_SCENES:
        empty_rendering(tmp_path, f"scene_{number:05d}/1/0")
    (tmp_path / "scene_00001" / "2D_rendering" / "5" / "panorama" / "full").mkdir(parents=True)
    (tmp_path / "scene_00002").mkdir()
    (folder_of(tmp_path, references[0]).parent / "Thumbs.db").write_text("")
    assert list(Structured3DSource(str(tmp_path)).references()) == references
    subsets = {name: list(Structured3DSource(tmp_path, subset=name).references()) for name in ("train", "val", "test")}
    assert subsets == {"train": references[:5], "val": references[5:7], "test": references[7:]}
    with pytest.raises(UsageError, match="train, val, test"):
        Structured3DSource(tmp_path, subset="validation")


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    empty_rendering(tmp_path / "train only", "scene_00000/1/0")
    with pytest.raises(DataError, match="subset test"):
        Structured3DSource(tmp_path / "train only", subset="test")
    (tmp_path / "panoramas" / "scene_00001" / "2D_rendering" / "5" / "panorama" / "full").mkdir(parents=True)
    for name in ("panoramas", "missing"):
        with pytest.raises(DataError, match="no perspective renderings"):
            Structured3DSource(tmp_path / name)


def test_trees_are_recognised(tree: Path) -> None:
    assert Structured3DSource.recognise(tree)
    (tree / "pictures" / "scene_00000").mkdir(parents=True)
    (tree / "pictures" / "scene_00000" / "2D_rendering").write_text("a file")
    (tree / "rooms").mkdir()
    (tree / "rooms" / "render.json").write_text("{}")
    (tree / "panoramas" / "scene_00001" / "2D_rendering" / "5" / "panorama" / "full").mkdir(parents=True)
    for name in ("pictures", "rooms", "panoramas", "missing", "rooms/render.json"):
        assert not Structured3DSource.recognise(tree / name), name


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no image": lambda path: path.write_bytes(b"words " * 100),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "another size": lambda path: Image.open(path).resize((WIDTH, HEIGHT - 1), Image.Resampling.NEAREST).save(path),
    "8-bit gray": lambda path: Image.new("L", (WIDTH, HEIGHT), 7).save(path),
}


PLANES_AND_DAMAGES = [(plane, damage) for plane in ("depth", "normal", "instance") for damage in DAMAGES]
PLANES_AND_DAMAGES += [("rgb_rawlight", damage) for damage in ("missing", "empty", "no image", "cut short")]


@pytest.mark.parametrize(("plane", "damage"), PLANES_AND_DAMAGES)
def test_a_damaged_plane_is_named(tree: Path, plane: str, damage: str) -> None:
    path = folder_of(tree, REFERENCE) / f"{plane}.png"
    DAMAGES[damage](path)
    with pytest.raises(DataError) as error:
        Structured3DSource(tree).read(REFERENCE)
    assert error.value.where == path


def test_an_image_of_another_size_than_its_planes_is_refused(tree: Path) -> None:
    DAMAGES["another size"](folder_of(tree, REFERENCE) / "rgb_rawlight.png")
    with pytest.raises(DataError, match=r"depth\.png(.|\n)*96 x 53"):
        Structured3DSource(tree).read(REFERENCE)


@pytest.mark.parametrize(
    "content",
    [
        *("", "words", "é", POSE.rpartition(" ")[0], f"{POSE} 1"),
        *(POSE.replace(str(HALF_X), "40"), POSE.replace(str(HALF_X), "-0.5"), POSE.replace(str(HALF_Y), "nan")),
    ],
)
def test_a_damaged_camera_is_named(tree: Path, content: str) -> None:
    path = folder_of(tree, REFERENCE) / "camera_pose.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        Structured3DSource(tree).read(REFERENCE)
    assert error.value.where == path
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        Structured3DSource(tree).read(REFERENCE)


def test_a_source_travels_and_packs(tmp_path: Path, view: PlaneScene) -> None:
    for reference in (REFERENCE, "scene_00000/485142/1", "scene_03300/7/0"):
        write_rendering(tmp_path / "data", reference, view)
    source = pickle.loads(pickle.dumps(Structured3DSource(tmp_path / "data", subset="train")))
    manifest = pack(source, tmp_path / "out", size=32)
    assert (manifest.samples, manifest.layout) == (2, "structured3d")
    sample = next(iter(read_samples(tmp_path / "out")))
    assert sample.key == "scene_00000__485142__0"
    assert sample.depth is not None
    assert sample.normal is not None
    assert sample.valid is not None
    middles = np.arange(32) + 0.5
    nearest = np.ix_((middles * HEIGHT / 32).astype(int), (middles * WIDTH / 32).astype(int))
    known = sample.depth > 0
    assert known.mean() > 0.9
    assert np.abs(sample.depth - view.z[nearest])[known].max() < 0.0011
    assert angles(sample.normal, view.normal[nearest])[sample.valid].max() < 1.2
