"""SceneNet RGB-D: a scene of known planes, written as the dataset writes it, and read again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sources.damage import DAMAGES, fail_to_read
from sources.planes import PlaneScene, assert_matches, assert_packs, assert_wall, wall
from sources.trees.photos import write_photos
from sources.trees.scenenet import HOLE, room_with_window, write_frame

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
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


@pytest.mark.parametrize("distance", [2, 5, 10, 20])
def test_a_wall_has_its_normals_in_millimetres_of_the_ray(tmp_path: Path, distance: float) -> None:
    """Steps of a millimetre need 14 cm of a surface, so that lines have 38 pixels at 2 m and 5 at 20 m."""
    view = wall(CAMERA, HEIGHT, WIDTH, distance)
    write_frame(tmp_path / "val" / "0" / "1", 0, view, hole=False)
    assert_wall(read(tmp_path), view, mean=0.15, p90=0.25, known=1)


def test_the_wall_would_notice_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = wall(CAMERA, HEIGHT, WIDTH, 2)
    write_frame(tmp_path / "val" / "0" / "1", 0, view, hole=False)
    monkeypatch.setattr(layout, "_steps", lambda: 0.0001)
    with pytest.raises(AssertionError, match="in the mean"):
        assert_wall(read(tmp_path), view)


def test_steps_are_shorter_off_the_axis() -> None:
    """A millimetre of the ray in the corner, whose slopes are tan 30 and tan 22.5 degrees but for half a pixel."""
    steps = layout._steps()
    assert steps.max() == pytest.approx(0.001, rel=1e-4)
    corner = 0.001 / np.sqrt(1 + np.tan(np.radians(30)) ** 2 + np.tan(np.radians(22.5)) ** 2)
    assert steps[0, 0] == steps.min() == pytest.approx(corner, rel=0.01)


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
        ("train/0/10", None, "0", 3),
        ("train/0/10", "train", "0", 3),
    ],
)
def test_any_level_of_the_tree_can_be_given(tree: Path, below: str, subset: str | None, first: str, count: int) -> None:
    source = SceneNetSource(tree / below, subset=subset)
    frames = list(source.references())
    assert (frames[0], len(frames)) == (first, count)
    assert len({source.key(frame) for frame in frames}) == count


@pytest.mark.parametrize(
    ("below", "evidence"),
    [("", "train/0/9 has"), ("val", "0/3 has"), ("train/1", "1000 has"), ("train/0/10", "the folder has")],
)
def test_it_is_told_what_speaks_for_it(tree: Path, below: str, evidence: str) -> None:
    assert SceneNetSource.recognise(tree / below) == f"{evidence} photo, depth and instance"


def test_a_trajectory_without_depth_does_not_hide_the_others(tree: Path) -> None:
    (tree / "train/0/9/depth").rmdir()
    assert SceneNetSource.recognise(tree) == "train/0/10 has photo, depth and instance"


@pytest.mark.parametrize("below", ["", "train", "train/0", "train/0/195"])
def test_the_sample_is_the_same_whichever_part_is_given(root: Path, room: PlaneScene, below: str) -> None:
    check(read(root / below), room)


def test_what_no_photo_needs_is_counted(root: Path) -> None:
    (root / "scenenet_rgbd_train_0.pb").touch()
    assert SceneNetSource(root).passed_over() == {}
    trajectory = root / "train" / "0" / "195"
    for name in ("depth/25.png", "instance/25.png", "photo/04550.jpg", "notes.txt", "normal/4550.png"):
        (trajectory / name).parent.mkdir(exist_ok=True)
        (trajectory / name).touch()
    for below in ("", "train", "train/0", "train/0/195"):
        passed = SceneNetSource(root / below).passed_over()
        expected = {"files ending in .jpg": 1, "files ending in .png": 3, "files ending in .txt": 1}
        assert {reason: kept.count for reason, kept in passed.items()} == expected


def test_files_of_another_subset_are_not_left_out_by_mistake(tree: Path) -> None:
    passed = SceneNetSource(tree, subset="val").passed_over()
    assert {reason: kept.first for reason, kept in passed.items()} == {
        "files ending in .txt": ["train/0/9/photo/notes.txt"]
    }


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
def test_a_damaged_file_is_named(root: Path, plane: str, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = SceneNetSource(root)
    path = root / "train" / "0" / "195" / plane
    DAMAGES[damage](path)
    if (plane, damage) == ("photo/4550.jpg", "another kind"):
        assert source.read("train/0/195/4550").image.shape == (HEIGHT, WIDTH, 3)
        return
    with pytest.raises(DataError) as caught:
        source.read("train/0/195/4550")
    assert caught.value.where == path
    assert machine_fault(caught.value) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("plane", ["photo/4550.jpg", "depth/4550.png", "instance/4550.png"])
def test_a_fault_of_the_disk_is_the_machines(root: Path, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "train" / "0" / "195" / plane
    fail_to_read(path, monkeypatch)
    with pytest.raises(DataError) as caught:
        read(root)
    assert caught.value.where == path
    assert machine_fault(caught.value).errno == errno.EIO


def test_it_packs_and_reads_back(root: Path, room: PlaneScene, tmp_path: Path) -> None:
    assert_packs(SceneNetSource(root), room, tmp_path / "packed", depth_tolerance=0.00051, min_known=0.99)
