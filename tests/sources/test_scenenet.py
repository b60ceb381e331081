"""SceneNet RGB-D: a scene of known planes, written as the dataset writes it, and read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sources.damage import DAMAGES
from sources.planes import PlaneScene, assert_matches, assert_packs
from sources.trees.photos import write_photos
from sources.trees.scenenet import HOLE, room_with_window, write_frame

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.sources import scenenet as layout
from fastssl.sources.scenenet import CAMERA, HEIGHT, WIDTH, SceneNetSource

KINECT = Intrinsics(fx=518.858, fy=519.470, cx=325.582, cy=253.736)
"""Of images of 640 x 480, which the paper's authors took for these."""


@pytest.fixture(scope="module")
def room() -> PlaneScene:
    return room_with_window()


@pytest.fixture
def root(tmp_path: Path, room: PlaneScene) -> Path:
    root = tmp_path / "scenenet"
    write_frame(root / "train" / "0" / "195", 4550, room)
    return root


def read(root: Path) -> Record:
    source = SceneNetSource(root)
    return source.read(next(source.references()))


def check(record: Record, room: PlaneScene) -> None:
    assert record.depth is not None
    assert record.normal is not None
    assert not record.depth[HOLE].any()
    assert not record.normal[HOLE].any()
    # Millimetres of the ray are half a millimetre of z at most.
    assert_matches(record, room, depth_tolerance=0.00051, min_known=0.998)


def test_the_planes_are_recovered(root: Path, room: PlaneScene) -> None:
    record = read(root)
    check(record, room)
    assert record.key == "train__0__195__4550"
    known = 1 - 60 / (WIDTH * HEIGHT)
    assert record.normal is not None
    assert record.normal.any(axis=2).mean() == pytest.approx(known)


def test_the_camera_is_the_one_of_the_dataset() -> None:
    """Its scripts turn a pixel into a ray by x = ((u + 0.5) / 320 * 2 - 1) tan 30, y likewise with tan 22.5."""
    assert (CAMERA.fx, CAMERA.fy) == pytest.approx((277.128, 289.706), abs=1e-3)
    u, v = 17, 201
    x = ((u + 0.5) / 320 * 2 - 1) * np.tan(np.radians(30))
    y = ((v + 0.5) / 240 * 2 - 1) * np.tan(np.radians(22.5))
    assert ((u + 0.5 - CAMERA.cx) / CAMERA.fx, (v + 0.5 - CAMERA.cy) / CAMERA.fy) == pytest.approx((x, y))


def as_it_is(values: NDArray[Any], camera: Intrinsics) -> NDArray[np.float32]:
    return values.astype(np.float32)


def test_a_ray_taken_for_depth_would_be_noticed(root: Path, room: PlaneScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "depth_from_ray_length", as_it_is)
    record = read(root)
    with pytest.raises(AssertionError, match="depth is off"):
        check(record, room)
    assert record.normal is not None
    with pytest.raises(AssertionError, match="a normal is off"):
        check(replace(record, depth=room.z.astype(np.float32) * (record.depth != 0)), room)


def test_the_lens_of_a_kinect_would_be_noticed(root: Path, room: PlaneScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CAMERA", KINECT)
    record = read(root)
    with pytest.raises(AssertionError, match="fx is"):
        check(record, room)
    with pytest.raises(AssertionError, match="depth is off"):
        check(replace(record, camera=CAMERA), room)
    with pytest.raises(AssertionError, match="a normal is off"):
        check(replace(record, camera=CAMERA, depth=room.z.astype(np.float32) * (record.depth != 0)), room)


@pytest.mark.parametrize("byte", [lambda plane: plane & 255, lambda plane: plane >> 8], ids=["low", "high"])
def test_one_byte_of_two_would_be_noticed(
    root: Path, room: PlaneScene, byte: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = read(root)
    read_plane = layout.read_plane
    monkeypatch.setattr(layout, "read_plane", lambda *given: byte(read_plane(*given)))
    wrong = read(root)
    with pytest.raises(AssertionError):
        check(replace(right, depth=wrong.depth), room)
    with pytest.raises(AssertionError, match="contours"):
        check(replace(right, instance=wrong.instance), room)


@pytest.mark.parametrize("mirror", [np.fliplr, np.flipud, lambda plane: plane.swapaxes(0, 1)])
def test_a_mirrored_plane_would_be_noticed(root: Path, room: PlaneScene, mirror: Callable[[Any], Any]) -> None:
    record = read(root)
    for name in ("depth", "normal", "instance"):
        with pytest.raises(AssertionError):
            check(replace(record, **{name: mirror(getattr(record, name))}), room)


def test_a_negated_axis_of_the_normals_would_be_noticed(root: Path, room: PlaneScene) -> None:
    record = read(root)
    for axis in range(3):
        with pytest.raises(AssertionError, match="a normal is off"):
            check(
                replace(record, normal=record.normal * np.where(np.arange(3) == axis, -1, 1).astype(np.float32)), room
            )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Names alone, of two subsets and three parts."""
    root = tmp_path / "names"
    for trajectory in ("train/0/9", "train/0/10", "train/1/1000", "val/0/3"):
        for plane in ("photo", "depth", "instance"):
            (root / trajectory / plane).mkdir(parents=True)
        for number in (0, 25, 100):
            (root / trajectory / "photo" / f"{number}.jpg").touch()
    (root / "train" / "0" / "9" / "photo" / "notes.txt").touch()
    return root


def test_frames_come_in_the_order_of_their_numbers(tree: Path) -> None:
    frames = list(SceneNetSource(tree).references())
    places = ["train/0/9", "train/0/10", "train/1/1000", "val/0/3"]
    assert frames == [f"{place}/{number}" for place in places for number in (0, 25, 100)]
    keys = [SceneNetSource(tree).key(frame) for frame in frames]
    assert len(set(keys)) == len(frames)


@pytest.mark.parametrize(
    ("below", "subset", "first", "count"),
    [
        ("", "train", "train/0/9/0", 9),
        ("", "val", "val/0/3/0", 3),
        ("train", None, "0/9/0", 9),
        ("train", "train", "0/9/0", 9),
        ("val", None, "0/3/0", 3),
        ("train/1", None, "1000/0", 3),
        ("train/0", "train", "9/0", 6),
    ],
)
def test_any_level_of_the_tree_can_be_given(tree: Path, below: str, subset: str | None, first: str, count: int) -> None:
    frames = list(SceneNetSource(tree / below, subset=subset).references())
    assert (frames[0], len(frames)) == (first, count)
    assert SceneNetSource.recognise(tree / below)


def test_a_subset_that_is_not_there_is_an_error(tree: Path) -> None:
    with pytest.raises(DataError, match="subset val"):
        SceneNetSource(tree / "train", subset="val")


def test_photos_in_numbered_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    write_photos(tmp_path, "0/0.jpg", "0/1/0.jpg")
    assert not SceneNetSource.recognise(tmp_path)
    assert not SceneNetSource.recognise(tmp_path / "0")
    with pytest.raises(DataError, match="photo"):
        SceneNetSource(tmp_path)


@pytest.mark.parametrize("plane", ["photo/4550.jpg", "depth/4550.png", "instance/4550.png"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(root: Path, plane: str, damage: str) -> None:
    source = SceneNetSource(root)
    path = root / "train" / "0" / "195" / plane
    DAMAGES[damage](path)
    if (plane, damage) == ("photo/4550.jpg", "another kind"):
        assert source.read("train/0/195/4550").image.shape == (HEIGHT, WIDTH, 3)
        return
    with pytest.raises(DataError) as caught:
        source.read("train/0/195/4550")
    assert caught.value.where == path


def test_it_packs_and_reads_back(root: Path, room: PlaneScene, tmp_path: Path) -> None:
    assert_packs(SceneNetSource(root), room, tmp_path / "packed", depth_tolerance=0.00051, min_known=0.99)
