"""Rays and contours in closed form."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.batch import Intrinsics
from fastssl.geometry import contours, pixel_rays, resized_camera


def test_rays_meet_a_plane_where_it_is() -> None:
    """A pixel's ray times its planar depth is the point: on z = 2 all depths are 2, and points project back."""
    camera = Intrinsics(fx=50.0, fy=60.0, cx=16.0, cy=12.0)
    points = 2.0 * pixel_rays(camera, 24, 32)
    assert (points[..., 2] == 2).all()
    x = points[..., 0] / points[..., 2] * camera.fx + camera.cx
    assert np.allclose(x, np.arange(32) + 0.5)


def test_a_stretched_image_has_the_rays_of_the_pixels_it_was_stretched_from() -> None:
    camera = Intrinsics(fx=50.0, fy=60.0, cx=16.0, cy=12.0)
    large = pixel_rays(resized_camera(camera, 3.0, 5.0), 24 * 5, 32 * 3)
    assert np.allclose(large[2::5, 1::3], pixel_rays(camera, 24, 32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_contours_are_exactly_the_changes(seed: int) -> None:
    ids = np.random.default_rng(seed).integers(254, 258, (9, 7))
    edge = contours(ids)
    for y in range(9):
        for x in range(7):
            right = x + 1 < 7 and ids[y, x] != ids[y, x + 1]
            below = y + 1 < 9 and ids[y, x] != ids[y + 1, x]
            assert edge[y, x] == (right or below)
