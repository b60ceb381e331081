from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sources.damage import UNREADABLE, fail_to_read
from sources.planes import assert_matches, assert_packs, assert_wall, wall
from sources.trees.photos import write_photos
from sources.trees.tartanair import (
    CAMERA,
    HEIGHT,
    NOT_A_NUMBER,
    REFERENCE,
    SKY,
    WIDTH,
    Planes,
    files,
    planes,
    scene,
    visible_scene,
    wall_planes,
    write_image,
)

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources import tartanair
from fastssl.sources.tartanair import TartanAirSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tartanair"
    write_image(root, planes())
    return root


def check(record: Record) -> None:
    """float32 is as good as exact, and so are the normals that are computed from it."""
    assert_matches(record, visible_scene(), depth_tolerance=1e-5, normal_degrees=0.02, min_known=0.995)
    for unknown in (SKY, NOT_A_NUMBER):
        assert not record.depth[unknown].any()
        assert not record.normal[unknown].any()


def test_an_image_shows_the_scene(folder: Path) -> None:
    record = TartanAirSource(folder).read(REFERENCE)
    check(record)
    assert record.key == "abandonedfactory__easy__p000__000000"
    assert (record.image == [10, 20, 200]).all()
    assert np.unique(record.instance).tolist() == [0, 253, 254, 255]


@pytest.mark.parametrize("distance", [2, 5, 10, 20])
def test_a_wall_has_its_normals_in_the_float16_that_genuine_files_hold(tmp_path: Path, distance: float) -> None:
    """Steps of float16 are a 1024th of the depth at most, so lines of 37 pixels are right at any distance."""
    view = wall(CAMERA, HEIGHT, WIDTH, distance)
    write_image(tmp_path, wall_planes(view))
    assert_wall(TartanAirSource(tmp_path).read(REFERENCE), view, mean=0.05, p90=0.1, known=1)


@pytest.mark.parametrize("distance", [2, 5, 10, 20])
def test_a_wall_has_its_normals_in_float32(tmp_path: Path, distance: float) -> None:
    view = wall(CAMERA, HEIGHT, WIDTH, distance)
    write_image(tmp_path, wall_planes(view) | {"depth": view.z.astype(np.float32)})
    assert_wall(TartanAirSource(tmp_path).read(REFERENCE), view, mean=0.001, p90=0.002, known=1)


def test_a_few_values_of_another_type_do_not_spoil_a_wall(tmp_path: Path) -> None:
    view = wall(CAMERA, HEIGHT, WIDTH, 5)
    image = wall_planes(view)
    image["depth"][::40, ::40] = view.z.astype(np.float32)[::40, ::40]
    write_image(tmp_path, image)
    assert_wall(TartanAirSource(tmp_path).read(REFERENCE), view, mean=0.05, p90=0.1, known=1)


def test_the_wall_would_notice_steps_of_a_millimetre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = wall(CAMERA, HEIGHT, WIDTH, 5)
    write_image(tmp_path, wall_planes(view))
    monkeypatch.setattr(tartanair, "_steps", lambda depth: 0.001)
    with pytest.raises(AssertionError, match="in the mean"):
        assert_wall(TartanAirSource(tmp_path).read(REFERENCE), view)


def ray_length(image: Planes) -> None:
    image["depth"][1:] = scene().ray_length[1:]


def mirrored(image: Planes) -> None:
    image["depth"] = image["depth"][:, ::-1]


def upside_down(image: Planes) -> None:
    image["seg"] = image["seg"][::-1]


def centimetres(image: Planes) -> None:
    image["depth"][1:] *= 0.01


def near_sky(image: Planes) -> None:
    image["depth"][SKY] = 60


def merged_meshes(image: Planes) -> None:
    image["seg"] |= 1


@pytest.mark.parametrize("mistake", [ray_length, mirrored, upside_down, centimetres, near_sky, merged_meshes])
def test_the_check_would_notice(folder: Path, mistake: Callable[[Planes], None]) -> None:
    image = planes()
    mistake(image)
    write_image(folder, image)
    record = TartanAirSource(folder).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(record)


def test_the_check_would_notice_other_intrinsics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tartanair, "CAMERA", Intrinsics(fx=320.0, fy=320.0, cx=320.5, cy=240.5))
    record = TartanAirSource(folder).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(record)


def test_arrays_may_be_stored_by_columns(folder: Path) -> None:
    write_image(folder, {name: np.asfortranarray(plane) for name, plane in planes().items()})
    check(TartanAirSource(folder).read(REFERENCE))


def test_what_a_shard_cannot_hold_is_not_known(folder: Path) -> None:
    image = planes()
    image["depth"][100, 100:106] = [65.5, 65.54, 655.0, np.inf, 0.0, -1.0]
    write_image(folder, image)
    record = TartanAirSource(folder).read(REFERENCE)
    assert record.depth[100, 100:106].tolist() == [65.5, 0, 0, 0, 0, 0]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("above", ["", "abandonedfactory/"])
def test_it_is_found_wherever_environments_lie_and_whichever_part_is_given(tmp_path: Path, above: str) -> None:
    root = tmp_path / "data"
    images = ["Easy/P000/000000", "Easy/P000/000001", "Easy/P002/000000", "Hard/P000/000010"]
    for image in images:
        touch(files(root / f"{above}abandonedfactory", image)["image"])
    touch(root / "notes.txt", root / "empty/Easy/P000/depth_left/x.npy")
    place = f"{above}abandonedfactory/"
    parts = {
        "": [f"{place}{image}" for image in images],
        place: images,
        f"{place}Easy": [image.removeprefix("Easy/") for image in images if image.startswith("Easy")],
        f"{place}Easy/P000": ["000000", "000001"],
    }
    for part, references in parts.items():
        source = TartanAirSource(root / part)
        assert list(source.references()) == references
        keys = [source.key(reference) for reference in references]
        assert len(set(keys)) == len(keys)
        folder = references[0].rpartition("/")[0]
        assert TartanAirSource.recognise(root / part) == f"{folder}/image_left has 000000_left.png".lstrip("/")


@pytest.mark.parametrize("part", ["", "abandonedfactory", "abandonedfactory/Easy", "abandonedfactory/Easy/P000"])
def test_the_sample_is_the_same_whichever_part_is_given(folder: Path, part: str) -> None:
    source = TartanAirSource(folder / part)
    (reference,) = source.references()
    check(source.read(reference))


def test_what_no_image_needs_is_counted(folder: Path) -> None:
    trajectory = folder / "abandonedfactory/Easy/P000"
    used = ("image_right/000000_right.png", "seg_right/000000_right_seg.npy", "flow/000000_000001_mask.npy")
    touch(*(trajectory / name for name in (*used, "pose_left.txt")))
    assert TartanAirSource(folder).passed_over() == {}
    touch(folder / "image_left.zip", trajectory / "image_left/0_left.png", folder / "previews/000000_left.png")
    # An image that is missing takes its labels with it.
    touch(trajectory / "depth_left/000001_left_depth.npy", trajectory / "seg_left/000001_left_seg.npy")
    for part in ("", "abandonedfactory/Easy/P000"):
        passed = TartanAirSource(folder / part).passed_over()
        assert passed["files ending in .npy"].count == 2
    assert {reason: kept.count for reason, kept in TartanAirSource(folder).passed_over().items()} == {
        "files ending in .npy": 2,
        "files ending in .png": 2,
        "files ending in .zip": 1,
    }


def test_photos_in_such_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    write_photos(tmp_path, "Easy/P000/a.jpg")
    assert not TartanAirSource.recognise(tmp_path)
    with pytest.raises(DataError, match="no left images"):
        TartanAirSource(tmp_path)


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    assert_packs(TartanAirSource(folder), visible_scene(), tmp_path / "packed", min_known=0.98)


@pytest.mark.parametrize("name", ["image", "depth", "seg"])
@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_damaged_file_is_an_error_that_names_it(
    folder: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = TartanAirSource(folder)
    UNREADABLE[damage](files(folder)[name])
    with pytest.raises(DataError) as caught:
        source.read(REFERENCE)
    assert caught.value.where == files(folder)[name]
    assert machine_fault(caught.value) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["image", "depth", "seg"])
def test_a_fault_of_the_disk_is_the_machines(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_read(files(folder)[name], monkeypatch)
    with pytest.raises(DataError) as caught:
        TartanAirSource(folder).read(REFERENCE)
    assert caught.value.where == files(folder)[name]
    assert machine_fault(caught.value).errno == errno.EIO


def header(**fields: object) -> bytes:
    """Of a .npy file, with these fields instead of what belongs there."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": (480, 640)} | fields)
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.replace("'480L'", "480L").ljust(118).encode()


@pytest.mark.parametrize(
    "head", [header(shape=(10**9, 10**9)), header(shape="(480"), header(descr="|O"), b"\x93NUMPY\x09\x00" + bytes(120)]
)
def test_a_damaged_header_is_an_error_of_the_file(folder: Path, head: bytes) -> None:
    """Whatever NumPy makes of it: no memory for so large an array, say."""
    path = files(folder)["depth"]
    path.write_bytes(head + bytes(640 * 480 * 4))
    with pytest.raises(DataError, match="does not decode") as caught:
        TartanAirSource(folder).read(REFERENCE)
    assert caught.value.where == path
    assert machine_fault(caught.value) is None


@pytest.mark.filterwarnings("error")
def test_files_of_python_2_are_read_without_a_warning(folder: Path) -> None:
    path = files(folder)["depth"]
    path.write_bytes(header(shape=("480L", 640)) + planes()["depth"].tobytes())
    check(TartanAirSource(folder).read(REFERENCE))


@pytest.mark.parametrize(
    ("name", "plane", "message"),
    [
        ("image", np.zeros((480, 639, 3), np.uint8), "639 x 480"),
        ("depth", np.zeros((480, 640), np.float16), "float16"),
        ("depth", np.zeros((480, 640), np.uint16), "uint16"),
        ("depth", np.zeros((640, 480), np.float32), r"\(640, 480\)"),
        ("depth", np.zeros((480, 640, 1), np.float32), r"\(480, 640, 1\)"),
        ("seg", np.zeros((480, 640), np.int32), "int32"),
        ("seg", np.array([{}]), "decode"),
    ],
)
def test_a_plane_of_another_kind_is_an_error_that_names_it(
    folder: Path, name: str, plane: NDArray[Any], message: str
) -> None:
    write_image(folder, planes() | {name: plane})
    with pytest.raises(DataError, match=message) as caught:
        TartanAirSource(folder).read(REFERENCE)
    assert str(files(folder)[name]) in str(caught.value)
