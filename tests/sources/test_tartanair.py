from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sources.damage import UNREADABLE
from sources.planes import assert_matches, assert_packs
from sources.trees.photos import write_photos
from sources.trees.tartanair import (
    NOT_A_NUMBER,
    REFERENCE,
    SKY,
    Planes,
    files,
    planes,
    scene,
    visible_scene,
    write_image,
)

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
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


@pytest.mark.parametrize("above", ["", "abandonedfactory"])
def test_references_are_sorted_wherever_environments_lie(tmp_path: Path, above: str) -> None:
    root = tmp_path / "data"
    images = ["Easy/P000/000000", "Easy/P000/000001", "Easy/P002/000000", "Hard/P000/000010"]
    for image in images:
        path = files(root / above / "abandonedfactory", image)["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for ignored in ("notes.txt", "abandonedfactory/Easy/P000/pose_left.txt", "empty/Easy/P000/depth_left/x.npy"):
        (root / ignored).parent.mkdir(parents=True, exist_ok=True)
        (root / ignored).touch()
    prefix = f"{above}/abandonedfactory/".lstrip("/")
    source = TartanAirSource(root)
    assert list(source.references()) == [f"{prefix}{image}" for image in images]
    assert list(TartanAirSource(root / above / "abandonedfactory").references()) == images
    assert TartanAirSource.recognise(root)
    assert TartanAirSource.recognise(root / above / "abandonedfactory")


def test_photos_in_such_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    write_photos(tmp_path, "Easy/P000/a.jpg")
    assert not TartanAirSource.recognise(tmp_path)
    with pytest.raises(DataError, match="no left images"):
        TartanAirSource(tmp_path)


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    assert_packs(TartanAirSource(folder), visible_scene(), tmp_path / "packed", min_known=0.98)


@pytest.mark.parametrize("name", ["image", "depth", "seg"])
@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_damaged_file_is_an_error_that_names_it(folder: Path, name: str, damage: str) -> None:
    source = TartanAirSource(folder)
    UNREADABLE[damage](files(folder)[name])
    with pytest.raises(DataError) as caught:
        source.read(REFERENCE)
    assert str(files(folder)[name]) in str(caught.value)


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
