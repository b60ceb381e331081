"""Rays, contours, ray lengths and computed normals in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sources.planes import angles, scene

from fastssl.batch import Intrinsics
from fastssl.geometry import depth_from_ray_length, edge_of, normals_from_depth, pixel_rays, resized_camera

SCENENET = Intrinsics(fx=277.128, fy=289.706, cx=160.0, cy=120.0)
TINY = Intrinsics(fx=55.0, fy=57.0, cx=31.0, cy=25.0)


def plane_depth(
    camera: Intrinsics, height: int, width: int, normal: NDArray[np.float64], z: float
) -> NDArray[np.float64]:
    """Depth of the plane through (0, 0, z)."""
    return normal[2] * z / (pixel_rays(camera, height, width) @ normal)


def leaning(degrees: float, towards: float) -> NDArray[np.float64]:
    """A normal at an angle to the optical axis, towards a direction in the image."""
    tilt, azimuth = np.radians([degrees, towards])
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), -np.cos(tilt)])


def whole_millimetres(depth: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.rint(depth * 1000) / 1000).astype(np.float32)


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
    edge = edge_of(ids)
    for y in range(9):
        for x in range(7):
            right = x + 1 < 7 and ids[y, x] != ids[y, x + 1]
            below = y + 1 < 9 and ids[y, x] != ids[y + 1, x]
            assert edge[y, x] == (right or below)


def test_the_ray_length_of_a_sphere_around_the_camera_is_its_radius() -> None:
    rays = pixel_rays(SCENENET, 240, 320)
    z = depth_from_ray_length(np.full((240, 320), 3.0), SCENENET)
    assert z.dtype == np.float32
    assert np.abs(np.linalg.norm(z[..., None] * rays, axis=2) - 3).max() < 1e-6


def test_ray_lengths_of_a_frontal_wall_become_one_depth() -> None:
    cosine = 1 / np.linalg.norm(pixel_rays(SCENENET, 240, 320), axis=2)
    assert np.abs(depth_from_ray_length(2.5 / cosine, SCENENET) - 2.5).max() < 1e-6


def test_unknown_ray_lengths_become_depth_zero() -> None:
    lengths = np.array([[0.0, -1.0, np.nan, np.inf, -np.inf, 2.0]])
    assert (depth_from_ray_length(lengths, TINY) > 0).tolist() == [[False] * 5 + [True]]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0, 5.0, 20.0, 45.0, 60.0]),
    st.floats(0, 360),
    st.floats(0.3, 60.0),
    st.sampled_from([(0.5, 0.5), (0.25, 1.0), (1.0, 0.25)]),
)
@example(0.05, 90.0, 1.0, (0.25, 1.0))
@example(0.05, 0.0, 1.0, (1.0, 0.25))
@example(60.0, 132.0, 55.0, (1.0, 0.25))  # its last columns at 65 m have one pixel, and two
def test_planes_in_whole_millimetres_have_normals_within_one_degree(
    tilt: float, towards: float, z: float, stretch: tuple[float, float]
) -> None:
    """Nearly frontal planes are the hard ones: their depth changes by one step in many pixels."""
    camera = resized_camera(SCENENET, *stretch)
    normal = leaning(tilt, towards)
    depth = plane_depth(camera, int(240 * stretch[1]), int(320 * stretch[0]), normal, z)
    depth[depth > 65] = 0
    depth[depth < 0] = 0
    computed = normals_from_depth(whole_millimetres(depth), camera)
    assert computed.dtype == np.float32
    known = computed.any(axis=2)
    assert not known[depth == 0].any()
    across = [(depth > 0).sum(axis=axis, keepdims=True) >= 3 for axis in (0, 1)]  # fewer may have no slope
    assert known[(depth > 0) & across[0] & across[1]].all()
    assert angles(computed, np.broadcast_to(normal, computed.shape))[known].max() < 1
    assert np.abs(np.linalg.norm(computed, axis=2)[known] - 1).max() < 1e-6


@pytest.mark.parametrize(
    ("camera", "height", "width", "scale", "step"),
    [(SCENENET, 240, 320, 1.0, 0.001), (TINY, 48, 64, 1.0, 0.001), (SCENENET, 240, 320, 8.0, 0.01)],
)
def test_every_pixel_of_the_scene_is_within_one_degree(
    camera: Intrinsics, height: int, width: int, scale: float, step: float
) -> None:
    """Pixels beside edges, holes and the image's border too."""
    room = scene(camera, height, width, scale=scale)
    depth = (np.rint(room.z / step) * step).astype(np.float32)
    depth[10:14, 20:25], depth[30, 30], depth[-1, 3] = 0, np.nan, np.inf
    normal = normals_from_depth(depth, camera, room.instance, step=step)
    known = np.isfinite(depth) & (depth > 0)
    has_normal = normal.any(axis=2)
    assert not has_normal[~known].any()
    assert has_normal.sum() >= 0.999 * known.sum()
    assert angles(normal, room.normal)[has_normal].max() < 1
    assert ((normal * pixel_rays(camera, height, width)).sum(axis=2)[has_normal] < 0).all()


@pytest.mark.parametrize(("tilt", "z"), [(0.0, 1.0), (20.0, 2.5), (45.0, 4.0)])
def test_steps_may_grow_with_the_depth(tilt: float, z: float) -> None:
    """Whole disparities, as Kinect stores them: the step is the square of the depth over what the two make together."""
    camera = Intrinsics(fx=518.0, fy=519.0, cx=280.0, cy=210.0)
    normal = leaning(tilt, 30.0)
    exact = plane_depth(camera, 427, 561, normal, z)
    depth = 351.3 / np.rint(351.3 / exact)
    computed = normals_from_depth(depth, camera, step=depth**2 / 351.3)
    assert computed.any(axis=2).mean() > 0.99
    assert angles(computed, np.broadcast_to(normal, computed.shape))[computed.any(axis=2)].max() < 1
    everywhere = np.full(depth.shape, 0.02)
    assert np.array_equal(
        normals_from_depth(depth, camera, step=everywhere), normals_from_depth(depth, camera, step=0.02)
    )


def test_exact_depth_of_planes_gives_exact_normals() -> None:
    room = scene(TINY, 48, 64)
    assert angles(normals_from_depth(room.z, TINY, room.instance), room.normal).max() < 1e-3


def test_without_identities_creases_and_jumps_are_found_in_the_depth() -> None:
    room = scene(SCENENET, 240, 320)
    wrong = angles(normals_from_depth(whole_millimetres(room.z), SCENENET), room.normal) > 1
    near_an_edge = sum(np.roll(room.edge, shift, axis) for shift in range(-3, 4) for axis in (0, 1)) > 0
    assert (wrong & ~near_an_edge).sum() <= 1
    assert wrong.sum() < 0.1 * room.edge.sum()


def test_an_object_before_a_wall_takes_nothing_from_it() -> None:
    """Both are frontal, so any line from one to the other would lean."""
    depth = np.full((48, 64), 3.0)
    depth[10:30, 20:50] = 2.0
    normal = normals_from_depth(depth, TINY)
    assert normal.any(axis=2).all()
    assert angles(normal, np.broadcast_to([0, 0, -1], normal.shape)).max() < 0.01


def test_a_pole_of_one_pixel_has_no_normals_and_spoils_none() -> None:
    depth = np.full((48, 64), 3.0)
    depth[:, 30] = 2.0
    normal = normals_from_depth(depth, TINY)
    known = normal.any(axis=2)
    assert known.mean() > 0.95
    assert angles(normal, np.broadcast_to([0, 0, -1], normal.shape))[known].max() < 0.01


def test_a_rough_surface_has_few_normals() -> None:
    depth = np.random.default_rng(0).uniform(2.0, 3.0, (48, 64))
    assert normals_from_depth(depth, TINY).any(axis=2).mean() < 0.5


def test_identities_separate_what_the_depth_does_not() -> None:
    """A fold of two degrees is less than the steps of the depth."""
    left, right = leaning(1.0, 180.0), leaning(1.0, 0.0)
    one, other = (plane_depth(SCENENET, 240, 320, normal, 4.0) for normal in (left, right))
    instance = np.repeat([[7, 8]], 160, axis=1).repeat(240, axis=0)
    depth, truth = np.where(instance == 7, one, other), np.where((instance == 7)[..., None], left, right)
    assert angles(normals_from_depth(depth, SCENENET, instance), truth).max() < 0.01
    assert angles(normals_from_depth(depth, SCENENET), truth).max() > 0.5


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 3.0), st.floats(0, 360), st.floats(0.5, 3.0))
def test_patches_of_three_centimetres_are_within_five_degrees(tilt: float, towards: float, z: float) -> None:
    normal = leaning(tilt, towards)
    depth = plane_depth(SCENENET, 240, 320, normal, z)
    side = int(np.ceil(0.03 / z * SCENENET.fy)) + 1
    rows, columns = np.indices(depth.shape) // side
    computed = normals_from_depth(whole_millimetres(depth), SCENENET, rows * 1000 + columns)
    whole = np.s_[: 240 // side * side, : 320 // side * side]
    assert angles(computed, np.broadcast_to(normal, computed.shape))[whole].max() < 5


@pytest.mark.parametrize(
    ("step", "side", "known"), [(0.01, 4, False), (0.01, 12, True), (0.07, 12, False), (0.07, 40, True)]
)
def test_patches_whose_slope_the_steps_hide_have_no_normals(step: float, side: int, known: bool) -> None:
    """At 5 m, where a pixel is 7 mm wide: 4 pixels in steps of a centimetre would be off by 5 degrees in the mean.

    12 pixels in steps of seven would be so by 10.
    """
    camera = Intrinsics(fx=700.0, fy=700.0, cx=160.0, cy=120.0)
    rows, columns = np.indices((240, 320)) // side
    for tilt, towards in ((0.5, 30.0), (20.0, 0.0), (45.0, 130.0)):
        normal = leaning(tilt, towards)
        depth = np.rint(plane_depth(camera, 240, 320, normal, 5.0) / step) * step
        computed = normals_from_depth(depth, camera, rows * 1000 + columns, step=step)
        has_normal = computed.any(axis=2)
        assert has_normal.mean() > 0.95 if known else has_normal.mean() < 0.01
        if known:
            assert angles(computed, np.broadcast_to(normal, computed.shape))[has_normal].mean() < 3


def test_noise_of_a_step_leaves_a_wall_its_normals_however_coarse_the_steps_are() -> None:
    """Kinect's steps at 10 m are 28 cm: more than a hundredth of the depth is left over beside any line."""
    camera = Intrinsics(fx=518.0, fy=519.0, cx=280.0, cy=210.0)
    normal = leaning(20.0, 0.0)
    noise = np.random.default_rng(0).normal(0, 0.5, (427, 561))
    depth = 351.3 / np.rint(351.3 / plane_depth(camera, 427, 561, normal, 10.0) + noise)
    computed = normals_from_depth(depth, camera, step=2 * depth**2 / 351.3)
    assert computed.any(axis=2).all()
    assert angles(computed, np.broadcast_to(normal, computed.shape)).mean() < 0.5


@pytest.mark.parametrize(("radius", "distance", "fraction"), [(0.3, 1.5, 0.93), (0.2, 4.0, 0.84)])
def test_a_sphere_bends_within_what_it_is_measured_over(radius: float, distance: float, fraction: float) -> None:
    """The second is 14 pixels in radius, so that its rim falls off within one."""
    rays = pixel_rays(SCENENET, 240, 320)
    centre = np.array([0.1, 0.05, distance])
    along, square = rays @ centre, (rays * rays).sum(axis=2)
    inside = along**2 - square * (centre @ centre - radius**2)
    hit = inside > 0
    z = np.where(hit, (along - np.sqrt(np.maximum(inside, 0))) / square, 0)
    truth = (rays * z[..., None] - centre) / radius
    normal = normals_from_depth(whole_millimetres(z), SCENENET)
    known = normal.any(axis=2)
    assert not known[~hit].any()
    assert known.sum() > fraction * hit.sum()
    errors = angles(normal, truth)[known]
    assert np.median(errors) < 0.8
    assert np.quantile(errors, 0.9) < 6


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_an_image_of_too_few_pixels_has_no_normals(shape: tuple[int, int]) -> None:
    assert not normals_from_depth(np.full(shape, 2.0, np.float32), TINY)[0, 0].any()


def test_scattered_pixels_have_no_normals() -> None:
    rows, columns = np.indices((20, 30))
    depth = np.where((rows + columns) % 2, 2.0, 0.0)
    assert not normals_from_depth(depth, TINY).any()
    assert not normals_from_depth(np.zeros((20, 30)), TINY).any()
    assert not normals_from_depth(np.full((20, 30), np.nan), TINY).any()


def test_the_given_planes_are_left_as_they_are() -> None:
    room = scene(TINY, 48, 64)
    depth, instance = room.z.astype(np.float32), room.instance.copy()
    depth[3, 3] = np.nan
    before = depth.copy()
    normals_from_depth(depth, TINY, instance)
    assert np.array_equal(depth, before, equal_nan=True)
    assert np.array_equal(instance, room.instance)
