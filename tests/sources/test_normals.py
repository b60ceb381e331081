from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sources.every_tree import TREES
from sources.pictures import png, save
from sources.planes import angles, scene, wall
from sources.trees import movi

from fastssl.batch import Intrinsics
from fastssl.geometry import pixel_rays
from fastssl.sources import open_source
from fastssl.sources.normals import facing_normals, stored_and_computed, unit_normals


def test_vectors_of_about_unit_length_are_brought_to_it() -> None:
    direction = np.array([0.48, -0.6, 0.64])
    lengths = np.array([[0.0, 0.5, 0.94, 0.96, 1.0, 1.04, 1.06, 2.0]])
    unit = unit_normals((lengths[..., None] * direction).astype(np.float32))
    assert unit.dtype == np.float32
    assert unit.any(axis=2).tolist() == [[False] * 3 + [True] * 3 + [False] * 2]
    assert np.abs(unit[0, 3:6] - direction).max() < 1e-6


def test_normals_that_do_not_face_the_camera_are_not_known() -> None:
    rays = pixel_rays(Intrinsics(fx=8.0, fy=8.0, cx=8.0, cy=6.0), 12, 16)
    across = np.cross(rays, [0.0, 1.0, 0.0])
    for towards, facing in ((-rays, True), (rays, False), (across - 0.01 * rays, True), (across + 0.01 * rays, False)):
        normal = (towards / np.linalg.norm(towards, axis=2, keepdims=True)).astype(np.float32)
        assert np.array_equal(facing_normals(normal, rays), normal if facing else np.zeros_like(normal))


@pytest.mark.parametrize("width", [96, 384, 640])
def test_computed_normals_are_those_of_the_same_pixels(width: int) -> None:
    """Whatever the stride of the grid; near edges a coarse grid knows less."""
    camera = Intrinsics(fx=0.8 * width, fy=0.8 * width, cx=width / 2, cy=3 * width / 8)
    room = scene(camera, 3 * width // 4, width)
    normal, depth = room.normal.astype(np.float32), room.z.astype(np.float32)
    normal[:, : width // 4] = 0
    depth[: width // 4] = 0
    stored, computed = stored_and_computed(normal, depth, camera)
    assert stored.shape == computed.shape
    assert len(stored) > 0.4 * 96 * 72
    error = angles(stored, computed)
    assert np.median(error) < 0.3
    assert (error < 1).mean() > 0.9
    assert stored.any(axis=1).all()
    assert computed.any(axis=1).all()


STRUCTURED3D = Intrinsics(fx=762.7, fy=762.7, cx=640.0, cy=360.0)
PBRS = Intrinsics(fx=517.97, fy=517.97, cx=320.0, cy=240.0)


@pytest.mark.parametrize("distance", [2, 5, 10, 20])
@pytest.mark.parametrize(("camera", "height", "width"), [(STRUCTURED3D, 720, 1280), (PBRS, 480, 640)])
def test_computed_normals_of_a_wall_follow_the_millimetres_in_which_these_layouts_store_depth(
    camera: Intrinsics, height: int, width: int, distance: float
) -> None:
    """A coarse grid has steps of a millimetre as well, and wider pixels, in which they tilt a line less."""
    view = wall(camera, height, width, distance)
    depth = (np.rint(view.z * 1000) / 1000).astype(np.float32)
    stored, computed = stored_and_computed(view.normal.astype(np.float32), depth, camera)
    stride = width // 128
    assert len(stored) == (height // stride) * (width // stride)
    errors = angles(stored, computed)
    assert errors.mean() < 0.15
    assert np.quantile(errors, 0.9) < 0.3


def coarser_png(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        if "depth" in str(path.relative_to(folder)):
            save(path, codes_of(path) // 16 * 16)


def codes_of(file: Path | BytesIO) -> NDArray[np.uint16]:
    with Image.open(file) as image:
        return np.array(image).astype(np.uint16)


def coarser_hdf5(folder: Path) -> None:
    for path in folder.rglob("*depth_meters.hdf5"):
        with h5py.File(path, "r+") as file:
            file["dataset"][:] = np.round(file["dataset"][:] * 16) / 16


def coarser_videos(folder: Path) -> None:
    features = movi.features_of()
    depth = [png(codes_of(BytesIO(image)) // 256 * 256) for image in features["depth"]]
    movi.write_videos(folder / movi.TRAIN, features | {"depth": depth})


@pytest.mark.parametrize(
    ("layout", "coarser"),
    [
        ("structured3d", coarser_png),
        ("pbrs", coarser_png),
        ("suncg", coarser_png),
        ("hypersim", coarser_hdf5),
        ("movi", coarser_videos),
    ],
)
def test_stored_normals_are_the_same_however_coarse_the_depth_is(
    tmp_path: Path, layout: str, coarser: Callable[[Path], None]
) -> None:
    folder = TREES[layout].write(tmp_path / "data")
    reference = next(open_source(folder, layout).references())
    fine = open_source(folder, layout).read(reference)
    coarser(folder)
    coarse = open_source(folder, layout).read(reference)
    assert (fine.depth != coarse.depth).mean() > 0.5
    assert fine.normal.any(axis=2).mean() > 0.9
    assert np.array_equal(fine.normal, coarse.normal)
