from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sources.planes import IDENTITIES, PlaneScene, assert_matches
from sources.planes import scene as plane_scene

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError, UsageError
from fastssl.shards import pack, read_samples
from fastssl.sources import tartanair
from fastssl.sources.tartanair import TartanAirSource

# 640 x 480 with a field of view of 90 degrees about the middle.
HEIGHT, WIDTH = 480, 640
CAMERA = Intrinsics(fx=320.0, fy=320.0, cx=320.0, cy=240.0)
REFERENCE = "abandonedfactory/Easy/P000/000000"
SKY, NOT_A_NUMBER = (slice(0, 30), slice(0, 40)), (300, 500)
Planes = dict[str, NDArray[Any]]


def scene() -> PlaneScene:
    return plane_scene(CAMERA, HEIGHT, WIDTH, scale=3)


def planes_of(view: PlaneScene) -> Planes:
    """What an image's files hold; AirSim numbers meshes up to 255."""
    depth = view.z.astype(np.float32)
    depth[SKY] = 10_000
    depth[NOT_A_NUMBER] = np.nan
    meshes = np.select([view.instance == name for name in IDENTITIES], (254, 255, 253, 0)).astype(np.uint8)
    return {"image": np.full((HEIGHT, WIDTH, 3), (10, 20, 200), np.uint8), "depth": depth, "seg": meshes}


def files(root: Path, reference: str = REFERENCE) -> dict[str, Path]:
    trajectory, _, number = reference.rpartition("/")
    return {
        "image": root / trajectory / "image_left" / f"{number}_left.png",
        "depth": root / trajectory / "depth_left" / f"{number}_left_depth.npy",
        "seg": root / trajectory / "seg_left" / f"{number}_left_seg.npy",
    }


def write(root: Path, planes: Planes, reference: str = REFERENCE) -> None:
    for name, path in files(root, reference).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "image":
            Image.fromarray(planes[name]).save(path)
        else:
            np.save(path, planes[name])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tartanair"
    write(root, planes_of(scene()))
    return root


def check(record: Record) -> None:
    """float32 is as good as exact, and so are the normals that are computed from it."""
    view = scene()
    for unknown in (SKY, NOT_A_NUMBER):
        view.z[unknown], view.normal[unknown] = 0, 0
    assert_matches(record, view, depth_tolerance=1e-5, normal_degrees=0.02, min_known=0.995)
    for unknown in (SKY, NOT_A_NUMBER):
        assert not record.depth[unknown].any()
        assert not record.normal[unknown].any()


def test_an_image_shows_the_scene(folder: Path) -> None:
    record = TartanAirSource(folder).read(REFERENCE)
    check(record)
    assert record.key == "abandonedfactory__easy__p000__000000"
    assert (record.image == [10, 20, 200]).all()
    assert np.unique(record.instance).tolist() == [0, 253, 254, 255]


def ray_length(planes: Planes) -> None:
    planes["depth"][1:] = scene().ray_length[1:]


def mirrored(planes: Planes) -> None:
    planes["depth"] = planes["depth"][:, ::-1]


def upside_down(planes: Planes) -> None:
    planes["seg"] = planes["seg"][::-1]


def centimetres(planes: Planes) -> None:
    planes["depth"][1:] *= 0.01


def near_sky(planes: Planes) -> None:
    planes["depth"][SKY] = 60


def merged_meshes(planes: Planes) -> None:
    planes["seg"] |= 1


@pytest.mark.parametrize("mistake", [ray_length, mirrored, upside_down, centimetres, near_sky, merged_meshes])
def test_the_check_would_notice(folder: Path, mistake: Callable[[Planes], None]) -> None:
    planes = planes_of(scene())
    mistake(planes)
    write(folder, planes)
    record = TartanAirSource(folder).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(record)


def test_the_check_would_notice_other_intrinsics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tartanair, "CAMERA", Intrinsics(fx=320.0, fy=320.0, cx=320.5, cy=240.5))
    record = TartanAirSource(folder).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(record)


def test_arrays_may_be_stored_by_columns(folder: Path) -> None:
    planes = {name: np.asfortranarray(plane) for name, plane in planes_of(scene()).items()}
    write(folder, planes)
    check(TartanAirSource(folder).read(REFERENCE))


def test_what_a_shard_cannot_hold_is_not_known(folder: Path) -> None:
    planes = planes_of(scene())
    values = np.array([65.5, 65.54, 655.0, np.inf, 0.0, -1.0], np.float32)
    planes["depth"][100, 100:106] = values
    write(folder, planes)
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
    assert len({source.key(reference) for reference in source.references()}) == 4
    assert all(re.fullmatch(r"[0-9a-z_-]{1,89}", source.key(reference)) for reference in source.references())
    assert list(TartanAirSource(root / above / "abandonedfactory").references()) == images
    assert TartanAirSource.recognise(root)
    assert TartanAirSource.recognise(root / above / "abandonedfactory")


def test_layouts_are_told_apart(folder: Path, tmp_path: Path) -> None:
    assert TartanAirSource.recognise(folder)
    assert not TartanAirSource.recognise(tmp_path / "missing")
    (tmp_path / "photos" / "Easy" / "P000").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "Easy" / "P000" / "a.jpg")
    assert not TartanAirSource.recognise(tmp_path / "photos")
    with pytest.raises(DataError, match="no left images"):
        TartanAirSource(tmp_path / "photos")


def test_there_are_no_subsets(folder: Path) -> None:
    assert TartanAirSource(folder).subset is None
    with pytest.raises(UsageError, match="tartanair"):
        TartanAirSource(folder, subset="Easy")


def test_it_pickles(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(TartanAirSource(folder)))
    assert source.labelled
    check(source.read(REFERENCE))


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    manifest = pack(TartanAirSource(folder), tmp_path / "packed", size=32)
    assert (manifest.samples, manifest.layout, manifest.domain) == (1, "tartanair", "synthetic")
    (sample,) = read_samples(tmp_path / "packed")
    assert sample.key == "abandonedfactory__easy__p000__000000"
    assert 0.9 < sample.valid.mean() < 1
    assert sample.edge.any()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("name", ["image", "depth", "seg"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, shorten, lambda path: path.write_bytes(b""), lambda path: path.write_text("no image")]
)
def test_a_damaged_file_is_an_error_that_names_it(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    source = TartanAirSource(folder)
    damage(files(folder)[name])
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
    planes = planes_of(scene())
    planes[name] = plane
    write(folder, planes)
    with pytest.raises(DataError, match=message) as caught:
        TartanAirSource(folder).read(REFERENCE)
    assert str(files(folder)[name]) in str(caught.value)
