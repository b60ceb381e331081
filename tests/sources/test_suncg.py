"""SUNCG's renderings, as released and as Ren and Lee's code reads them: known planes, written and read again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sources.damage import DAMAGES
from sources.pictures import save
from sources.planes import PlaneScene, assert_matches, assert_packs
from sources.trees import suncg as tree
from sources.trees.suncg import (
    FRAME,
    HOLE,
    OTHER_ROOM,
    ROOM,
    away_right_up_forward,
    boundary,
    right_forward_up,
    write_release,
    write_small,
)

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.geometry import depth_from_ray_length
from fastssl.shards import pack, read_samples
from fastssl.sources import suncg as layout
from fastssl.sources.suncg import CAMERA, PbrsSource, SuncgSource

KEY = FRAME.replace("/", "__")


# --- The tree of Ren and Lee's code


@pytest.fixture(scope="module")
def small_room() -> PlaneScene:
    return tree.small_room()


@pytest.fixture
def small(tmp_path: Path, small_room: PlaneScene) -> Path:
    root = tmp_path / "suncg_image"
    write_small(root, small_room)
    return root


def check(record: Record, room: PlaneScene) -> None:
    assert record.depth is not None
    assert record.normal is not None
    assert not record.depth[HOLE].any()
    assert not record.normal[HOLE].any()
    assert_matches(record, room, depth_tolerance=0.00051, min_known=0.99)


@pytest.mark.parametrize("frame", [right_forward_up, away_right_up_forward])
@pytest.mark.parametrize("one_bit", [False, True])
def test_the_planes_are_recovered_in_either_frame(
    tmp_path: Path, small_room: PlaneScene, frame: Callable[[Any], Any], one_bit: bool
) -> None:
    write_small(tmp_path, small_room, frame, one_bit=one_bit)
    record = SuncgSource(tmp_path).read(FRAME)
    check(record, small_room)
    assert (record.key, record.instance) == (KEY, None)


@pytest.mark.parametrize(
    "frame",
    [lambda normal: -right_forward_up(normal), lambda normal: np.roll(right_forward_up(normal), 1, axis=-1)],
    ids=["negated", "rolled"],
)
def test_normals_in_an_unknown_frame_are_refused(
    tmp_path: Path, small_room: PlaneScene, frame: Callable[[Any], Any]
) -> None:
    write_small(tmp_path, small_room, frame)
    with pytest.raises(DataError, match="do not fit its depth"):
        SuncgSource(tmp_path).read(FRAME)


def test_normals_that_face_away_or_are_mixed_are_not_known(tmp_path: Path, small_room: PlaneScene) -> None:
    odd = small_room.normal.copy()
    odd[60:70, 20:30] *= -1
    odd[60:70, 80:90] *= 0.5
    write_small(tmp_path, replace(small_room, normal=odd), right_forward_up)
    record = SuncgSource(tmp_path).read(FRAME)
    assert record.normal is not None
    assert not record.normal[60:70, 20:30].any()
    assert not record.normal[60:70, 80:90].any()
    assert_matches(record, small_room, min_known=0.97)


def test_a_wrong_frame_would_be_noticed(small: Path, small_room: PlaneScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_frame", lambda *given: np.eye(3, dtype=np.float32))
    record = SuncgSource(small).read(FRAME)
    with pytest.raises(AssertionError):
        check(record, small_room)


def test_the_lens_at_another_scale_would_be_noticed(
    small: Path, small_room: PlaneScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "resized_camera", lambda camera, *scales: camera)
    with pytest.raises((AssertionError, DataError)):
        check(SuncgSource(small).read(FRAME), small_room)


def test_its_frames_are_listed_in_order(small: Path) -> None:
    for frame in (f"{OTHER_ROOM}/000011", f"{ROOM}/000001"):
        save(small / "mlt" / f"{frame}_256.png", np.zeros((4, 4, 3), np.uint8))
    (small / "mlt" / ROOM / "thumbs.db").touch()
    source = SuncgSource(small)
    assert list(source.references()) == [f"{OTHER_ROOM}/000011", f"{ROOM}/000001", FRAME]
    assert [source.key(frame) for frame in source.references()][-1] == KEY


@pytest.mark.parametrize("plane", ["mlt", "depth", "normal", "edge"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_the_small_tree_is_named(
    small: Path, small_room: PlaneScene, plane: str, damage: str
) -> None:
    source = SuncgSource(small)
    path = small / plane / f"{FRAME}_256.png"
    DAMAGES[damage](path)
    if (plane, damage) == ("mlt", "another kind"):
        check(source.read(FRAME), small_room)
        return
    if (plane, damage) == ("mlt", "another size"):
        path = small / "depth" / f"{FRAME}_256.png"  # the image's size is what the others must have
    with pytest.raises(DataError) as caught:
        source.read(FRAME)
    assert caught.value.where == path


def test_the_small_tree_packs_and_no_contour_is_lost(small: Path, small_room: PlaneScene, tmp_path: Path) -> None:
    manifest = pack(SuncgSource(small), tmp_path / "packed", size=32)
    (sample,) = read_samples(tmp_path / "packed")
    assert (manifest.layout, sample.key) == ("suncg", KEY)
    assert sample.edge is not None
    assert np.array_equal(sample.edge, small_room.edge.reshape(32, 3, 32, 4).any(axis=(1, 3)))


# --- The release


@pytest.fixture(scope="module")
def room() -> PlaneScene:
    return tree.full_room()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, room: PlaneScene) -> Path:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("pbrs")
    write_release(root, room)
    return root


@pytest.fixture(scope="module")
def record(release: Path) -> Record:
    return PbrsSource(release).read(FRAME)


def test_the_planes_of_the_release_are_recovered(record: Record, room: PlaneScene) -> None:
    check(record, room)
    assert (record.key, record.camera) == (KEY, CAMERA)
    assert record.normal is not None
    assert not record.normal[-3:, -3:].any(), "normals marked as not valid are not known"


@pytest.mark.parametrize("as_released", [True, False])
def test_contours_are_read_where_there_are_no_identities(tmp_path: Path, room: PlaneScene, as_released: bool) -> None:
    write_release(tmp_path, room, as_released=as_released, nodes=False)
    assert PbrsSource.recognise(tmp_path)
    record = PbrsSource(tmp_path).read(FRAME)
    assert_matches(record, room, contours=False)
    assert record.instance is None
    assert record.edge is not None
    assert np.array_equal(record.edge, boundary(room.instance) > 0)
    assert (record.edge | ~room.edge).all(), "every change of identity is a stored contour"


def test_the_tree_of_the_release_tools_has_identities_too(tmp_path: Path, room: PlaneScene) -> None:
    write_release(tmp_path, room, as_released=False)
    check(PbrsSource(tmp_path).read(FRAME), room)


def test_normals_read_with_8_bits_would_be_noticed(
    release: Path, room: PlaneScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Pillow makes of such a file."""
    read_plane = layout.read_plane

    def read_8_bits(path: Path, mode: Any, size: tuple[int, int]) -> Any:
        return np.array(Image.open(path)) if mode == "RGB;16" else read_plane(path, mode, size)

    monkeypatch.setattr(layout, "read_plane", read_8_bits)
    with pytest.raises(AssertionError, match=r"only 0\.000 of the pixels have a normal"):
        check(PbrsSource(release).read(FRAME), room)


def test_other_axes_of_the_release_would_be_noticed(
    release: Path, room: PlaneScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for frame in (-layout._PBRS_FRAME, layout._PBRS_FRAME[[0, 2, 1]], layout._PBRS_FRAME * [-1, 1, 1]):
        monkeypatch.setattr(layout, "_PBRS_FRAME", frame.astype(np.float32))
        with pytest.raises(AssertionError):
            check(PbrsSource(release).read(FRAME), room)


def test_other_readings_of_the_planes_would_be_noticed(record: Record, room: PlaneScene) -> None:
    assert record.depth is not None
    assert record.instance is not None
    wrong: list[dict[str, Any]] = [
        {"depth": depth_from_ray_length(record.depth, CAMERA)},
        {"depth": (np.rint(record.depth * 1000) % 256 / 1000).astype(np.float32)},
        {"depth": record.depth / np.float32(4)},
        {"instance": record.instance & 255},
        {"instance": record.instance >> 8},
        {"camera": Intrinsics(fx=518.858, fy=519.470, cx=325.582, cy=253.736)},
        {"normal": np.fliplr(record.normal)},
    ]
    for planes in wrong:
        with pytest.raises(AssertionError):
            check(replace(record, **planes), room)


def test_the_list_of_good_frames_is_followed(tmp_path: Path) -> None:
    for frame in ("000000", "000001", "000002"):
        save(tmp_path / "mlt_v2" / ROOM / f"{frame}_mlt.png", np.zeros((4, 4, 3), np.uint8))
    assert list(PbrsSource(tmp_path).references()) == [f"{ROOM}/{frame}" for frame in ("000000", "000001", "000002")]
    goodlist = tmp_path / "data_goodlist_v2.txt"
    goodlist.write_text(f"{ROOM}/000002\n{OTHER_ROOM}/000000\n{ROOM}/000000\n\n")
    assert list(PbrsSource(tmp_path).references()) == [f"{ROOM}/000002", f"{ROOM}/000000"]
    goodlist.write_text(f"{ROOM}/000002\n<html>\n")
    with pytest.raises(DataError, match=r"data_goodlist_v2\.txt:2"):
        list(PbrsSource(tmp_path).references())


PLANES = {
    "mlt": "mlt",
    "depth": "depth",
    "norm_camera": "normal",
    "valid": "normal",
    "node": "node",
    "instance_boundary": "boundary",
}


@pytest.mark.parametrize("ending", PLANES)
@pytest.mark.parametrize("damage", ["missing", "cut short", "another kind"])
def test_a_damaged_file_of_the_release_is_named(
    tmp_path: Path, release: Path, room: PlaneScene, ending: str, damage: str
) -> None:
    for archive in ("mlt", "depth", "normal", "boundary", "node"):
        if (archive, ending) != ("node", "instance_boundary"):
            shutil.copytree(release / f"{archive}_v2", tmp_path / f"{archive}_v2")
    source = PbrsSource(tmp_path)
    path = tmp_path / f"{PLANES[ending]}_v2" / f"{FRAME}_{ending}.png"
    DAMAGES[damage](path)
    if (ending, damage) == ("mlt", "another kind"):
        check(source.read(FRAME), room)
        return
    with pytest.raises(DataError) as caught:
        source.read(FRAME)
    assert caught.value.where == path


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    save(tmp_path / "mlt_v2" / f"{FRAME}_mlt.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match="000005_mlt"):
        PbrsSource(tmp_path).read(FRAME)


def test_the_release_packs_and_reads_back(release: Path, room: PlaneScene, tmp_path: Path) -> None:
    assert_packs(PbrsSource(release), room, tmp_path / "packed", depth_tolerance=0.0005001, min_known=0.97)


@pytest.mark.parametrize(
    ("root", "below", "as_released"),
    [(".", "pbrs", True), (".", "projects_render", False), ("pbrs", "pbrs", True)]
    + [(f"pbrs/{name}_v2", "pbrs", True) for name in ("mlt", "depth", "normal", "node", "boundary")],
)
def test_the_release_is_found_above_and_below(
    tmp_path: Path, room: PlaneScene, root: str, below: str, as_released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(tmp_path / below, room, as_released=as_released)
    (tmp_path / below / "data_goodlist_v2.txt").write_text(f"{FRAME}\n")
    seen = "mlt_v2 with images" if as_released else "images"
    assert PbrsSource.recognise(tmp_path / root) == f"{below} has {seen} of rooms"
    source = PbrsSource(tmp_path / root)
    assert (source.path, list(source.references())) == (tmp_path / root, [FRAME])
    record = source.read(FRAME)
    assert record.key == KEY
    check(record, room)
    assert source.passed_over() == {}
    monkeypatch.chdir(tmp_path / root)
    assert (list(PbrsSource(".").references()), PbrsSource(".").passed_over()) == ([FRAME], {})


def test_an_archive_may_lie_one_folder_deeper(tmp_path: Path, room: PlaneScene) -> None:
    write_release(tmp_path, room)
    for name in ("mlt_v2", "normal_v2"):
        (tmp_path / name).rename(tmp_path / "other")
        (tmp_path / name).mkdir()
        (tmp_path / "other").rename(tmp_path / name / name)
    assert PbrsSource.recognise(tmp_path)
    check(PbrsSource(tmp_path).read(FRAME), room)
    assert PbrsSource(tmp_path).passed_over() == {}


def test_what_of_the_release_is_not_packed_is_counted(tmp_path: Path) -> None:
    for frame in ("000000", "000001"):
        save(tmp_path / "mlt_v2" / ROOM / f"{frame}_mlt.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "mlt_v2" / ROOM / "000000_color.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "mlt_v2.zip").touch()
    (tmp_path / "data_goodlist_v2.txt").write_bytes(f"\ufeff{ROOM}/000001\r\n\r\n{OTHER_ROOM}/000007\r\n".encode())
    source = PbrsSource(tmp_path)
    assert list(source.references()) == [f"{ROOM}/000001"]
    assert {reason: (one.count, one.first) for reason, one in source.passed_over().items()} == {
        "files ending in .png": (1, [f"mlt_v2/{ROOM}/000000_color.png"]),
        "files ending in .zip": (1, ["mlt_v2.zip"]),
        "frames of data_goodlist_v2.txt whose images are not there": (1, [f"{OTHER_ROOM}/000007"]),
        "images that data_goodlist_v2.txt does not name": (1, [f"mlt_v2/{ROOM}/000000_mlt.png"]),
    }


def test_faults_of_the_machine_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the list is read, and where its images are looked for: a frame is never left out for one."""
    save(tmp_path / "mlt_v2" / ROOM / "000000_mlt.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "data_goodlist_v2.txt").write_text(f"{ROOM}/000000\n")
    stat = Path.stat

    def stale(path: Path, **options: bool) -> os.stat_result:
        if path.name == "000000_mlt.png":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(path, **options)

    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name, replacement in (("pathlib.Path.stat", stale), ("fastssl.sources.lists.open_regular", failing)):
        with monkeypatch.context() as patch:
            patch.setattr(name, replacement)
            with pytest.raises(DataError) as caught:
                PbrsSource(tmp_path)
        assert machine_fault(caught.value) is not None


# --- Both


@pytest.mark.parametrize("root", [".", "suncg_image", "suncg_image/mlt", "suncg_image/edge"])
def test_the_small_tree_is_found_above_and_below(
    small: Path, tmp_path: Path, small_room: PlaneScene, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SuncgSource.recognise(tmp_path / root) == "suncg_image has mlt, depth, normal, edge, with images of rooms"
    source = SuncgSource(tmp_path / root)
    assert (source.path, list(source.references())) == (tmp_path / root, [FRAME])
    record = source.read(FRAME)
    assert record.key == KEY
    check(record, small_room)
    assert source.passed_over() == {}
    monkeypatch.chdir(tmp_path / root)
    assert (list(SuncgSource(".").references()), SuncgSource(".").passed_over()) == ([FRAME], {})
    (small / "mlt" / "list.txt").touch()
    expected = {"suncg_image/edge": {}}.get(root, {"files ending in .txt": 1})
    assert {reason: one.count for reason, one in SuncgSource(tmp_path / root).passed_over().items()} == expected


def test_each_tree_is_recognised_as_what_it_is(small: Path, release: Path, tmp_path: Path) -> None:
    photo = save(tmp_path / "photos" / ROOM / "000005.png", np.zeros((4, 4, 3), np.uint8))
    trees = (small, release, photo.parent.parent, photo)
    assert [SuncgSource.recognise(tree) for tree in trees] == [
        *("suncg_image has mlt, depth, normal, edge, with images of rooms", None, None, None)
    ]
    assert [PbrsSource.recognise(tree) for tree in trees] == [
        *(None, f"{release.name} has mlt_v2 with images of rooms", None, None)
    ]


@pytest.mark.parametrize("source", [SuncgSource, PbrsSource])
def test_what_is_not_there_is_an_error(source: type[SuncgSource | PbrsSource], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ROOM/FRAME"):
        source(tmp_path)
