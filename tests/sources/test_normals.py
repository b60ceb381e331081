from __future__ import annotations

import numpy as np
import pytest
from sources.planes import angles, scene

from fastssl.batch import Intrinsics
from fastssl.geometry import pixel_rays
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
