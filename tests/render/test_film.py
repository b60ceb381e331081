from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastssl.batch import Intrinsics
from fastssl.geometry import pixel_rays
from fastssl.render.film import denoised, develop
from fastssl.render.tracer import Picture

SIZE = 48
CAMERA = Intrinsics(fx=40.0, fy=40.0, cx=24.0, cy=24.0)
FACING = np.array([0.0, 0.0, -1.0], dtype=np.float32)


def wall(samples: NDArray[np.floating] | float, *, albedo: float | NDArray[np.floating] = 0.5) -> Picture:
    """A flat wall two metres ahead; of `samples`, (H, W, S, 3) or what broadcasts to it, four paths a pixel."""
    return Picture(
        samples=np.broadcast_to(samples, (SIZE, SIZE, 4, 3)).astype(np.float32),
        albedo=np.broadcast_to(albedo, (SIZE, SIZE, 3)).astype(np.float32),
        depth=np.full((SIZE, SIZE), 2.0, dtype=np.float32),
        normal=np.broadcast_to(FACING, (SIZE, SIZE, 3)).copy(),
        instance=np.ones((SIZE, SIZE), dtype=np.int32),
        camera=CAMERA,
    )


def noisy(value: NDArray[np.floating] | float, sigma: float) -> NDArray[np.floating]:
    """Gray paths whose mean over a pixel has the deviation `sigma`."""
    return value + np.random.default_rng(0).normal(0, 2 * sigma, (SIZE, SIZE, 4, 1))


def plane(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """(H, W) or what broadcasts to it, as the radiance of every path."""
    return np.broadcast_to(values, (SIZE, SIZE))[..., None, None]


def test_noise_is_averaged_away() -> None:
    out = denoised(wall(noisy(1.0, 0.2)))[4:-4, 4:-4]
    assert np.abs(out - 1).mean() < 0.2 * 0.8 / 6


def test_texture_without_noise_stays() -> None:
    """A fine checker under uncertain light keeps its contrast to the percent."""
    checker = np.where(np.indices((SIZE, SIZE)).sum(axis=0) % 2, 0.7, 0.1) + 0.01
    out = denoised(wall(plane(3.0 * checker) * noisy(1.0, 0.1), albedo=checker[..., None] - 0.01))[4:-4, 4:-4]
    assert np.abs(out / (3.0 * checker[4:-4, 4:-4, None]) - 1).max() < 0.1


def test_the_edge_of_a_shadow_stays_where_noise_does_not_explain_it() -> None:
    light = np.where(np.arange(SIZE) < SIZE // 2, 2.0, 0.2)
    out = denoised(wall(plane(light) + noisy(0.0, 0.02)))
    off = np.abs(out - light[None, :, None])
    assert off[:, : SIZE // 2 - 2].max() < 0.1
    assert off[:, SIZE // 2 + 2 :].max() < 0.1


@pytest.mark.parametrize("kind", ["normal", "depth"])
def test_surfaces_do_not_mix(kind: str) -> None:
    """Two walls of different brightness under heavy noise: turned against each other, or one behind the other."""
    left = np.arange(SIZE) < SIZE // 2
    light = np.where(left, 2.0, 1.0)
    picture = wall(plane(light) + noisy(0.0, 0.8))
    if kind == "normal":
        tilted = np.where(left[None, :, None], FACING, np.array([-0.8, 0.0, -0.6], dtype=np.float32))
        # The same points, so that the normals alone tell the surfaces apart.
        picture = replace(picture, normal=np.broadcast_to(tilted, (SIZE, SIZE, 3)).astype(np.float32))
    else:
        picture = replace(picture, depth=np.where(left, 2.0, 3.0)[None].repeat(SIZE, axis=0).astype(np.float32))
    across = denoised(picture).mean(axis=(0, 2))
    assert np.abs(across[SIZE // 2 - 4 : SIZE // 2] - 2.0).max() < 0.2
    assert np.abs(across[SIZE // 2 : SIZE // 2 + 4] - 1.0).max() < 0.2


def test_pixels_that_no_light_happened_to_reach_are_noise_too() -> None:
    """One path in forty finds the lamp; where none did, the paths agree on black."""
    found = np.random.default_rng(1).random((SIZE, SIZE, 4, 1)) < 0.1
    out = denoised(wall(np.where(found, 10.0, 0.0)))[8:-8, 8:-8]
    assert out.min() > 0.3
    assert out.max() < 3


def test_slanted_surfaces_are_smoothed_too() -> None:
    """A floor seen at a low angle: neighbouring depths differ much, yet it is one plane."""
    rays = pixel_rays(CAMERA, SIZE, SIZE)
    depth = np.where(rays[..., 1] > 0.02, 1.5 / np.maximum(rays[..., 1], 0.02), 0)
    floor = replace(
        wall(noisy(1.0, 0.2)),
        depth=depth.astype(np.float32),
        normal=np.broadcast_to(np.array([0, -1, 0], dtype=np.float32), (SIZE, SIZE, 3)).copy(),
    )
    assert np.abs(denoised(floor)[30:-4, 4:-4] - 1).mean() < 0.2 * 0.8 / 6


def test_lamps_stay_white_and_do_not_spill() -> None:
    radiance, albedo = np.ones((SIZE, SIZE)), np.full((SIZE, SIZE), 0.5)
    radiance[20:28, 20:28], albedo[20:28, 20:28] = 400.0, 0.0
    picture = wall(plane(radiance), albedo=albedo[..., None])
    image, out = develop(picture, 0.0), denoised(picture)
    outside = np.ones((SIZE, SIZE), dtype=bool)
    outside[20:28, 20:28] = False
    assert np.allclose(out[outside], 1.0, rtol=1e-4)
    assert (image[20:28, 20:28] >= 254).all()
    assert image[outside].max() < 140


def test_one_path_in_a_thousand_leaves_no_stain() -> None:
    """Paths a thousand times as bright as all others: cut to white, a few of them vanish in the average."""
    samples = np.ones((SIZE, SIZE, 4, 1))
    samples[np.random.default_rng(2).random(samples.shape) < 0.001] = 1000.0
    assert samples.max() == 1000.0
    assert denoised(wall(samples)).max() < 2.0


def test_paths_that_are_not_a_number_do_not_show() -> None:
    samples = noisy(1.0, 0.1) * np.ones(3)
    samples[10, 12, 0] = np.nan
    samples[30, 30, 1, 1] = np.inf
    assert np.abs(denoised(wall(samples)) - 1.0).max() < 0.3


def test_exposure_follows_the_brightness_and_its_offset() -> None:
    shades = np.linspace(0.2, 0.8, SIZE)

    def image(strength: float, exposure: float) -> NDArray[np.int64]:
        return develop(wall(plane(strength * shades), albedo=shades[None, :, None]), exposure).astype(np.int64)

    assert np.abs(image(50.0, 0.0) - image(1.0, 0.0)).max() <= 1
    assert 90 < image(1.0, 0.0).mean() < 140  # middle gray
    assert image(1.0, 1.0).mean() > image(1.0, 0.0).mean() + 25
    assert image(1.0, -1.0).mean() < image(1.0, 0.0).mean() - 25


def test_colours_keep_their_order_and_black_and_white_their_ends() -> None:
    ramp = np.geomspace(0.01, 300, SIZE)[None, :, None, None] * np.array([1.0, 0.5, 0.25])
    row = develop(wall(ramp), 0.0)[SIZE // 2].astype(int)
    assert (np.diff(row, axis=0) >= 0).all()
    assert (row[:, 0] >= row[:, 1]).all()
    assert (row[:, 1] >= row[:, 2]).all()
    assert row[0].max() < 20
    assert row[-1, 0] > 235
