from __future__ import annotations

import numpy as np
import pytest
from sources.planes import angles, scene

from fastssl.batch import Intrinsics
from fastssl.geometry import pixel_rays
from fastssl.sources.normals import decoded_normals, facing_normals, stored_and_computed, unit_normals


def test_codes_become_the_nearest_unit_vectors() -> None:
    """By the formula in NumPy's float32, bit for bit: 2 code - 255 is proportional to the normal, and exact."""
    codes = np.random.default_rng(0).integers(1, 256, (37, 41, 3), np.uint8)
    codes[3, 5:20] = 0
    codes[4, :6] = [[255, 1, 1], [128, 128, 128], [127, 127, 127], [1, 128, 255], [0, 1, 1], [128, 128, 0]]
    odd = 2 * codes.astype(np.float32) - np.float32(255)
    x, y, z = (odd[..., axis] for axis in range(3))
    expected = odd * (codes.any(axis=2) / np.sqrt(x * x + y * y + z * z))[..., None]
    for seen in (np.s_[:], np.s_[:0], np.s_[:, :0], np.s_[:1, :1], np.s_[::2, ::3], np.s_[::-1]):
        unit = decoded_normals(codes[seen])
        assert unit.dtype == np.float32
        assert unit.shape == codes[seen].shape
        np.testing.assert_array_equal(unit, expected[seen])
    lengths = np.linalg.norm(decoded_normals(codes).astype(float), axis=2)
    assert np.abs(lengths[codes.any(axis=2)] - 1).max() < 2e-7
    assert lengths[3, 5:20].max() == 0


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
