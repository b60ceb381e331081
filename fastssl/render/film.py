"""From noisy light to a photograph: a filter that knows the surfaces, automatic exposure and a tone curve."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastssl.geometry import pixel_rays
from fastssl.render.tracer import Picture

Plane: TypeAlias = NDArray[np.floating]

_LEVELS = 5
_MIDDLE_GRAY = 0.17
_CONTRAST = 0.4
"""Fraction of an S-shaped tone curve."""
_WHITE = 4.0
"""Radiance, after exposure, from which on the picture is white."""
_CUT = 10.0
"""How much brighter than the average of the picture a path may be; about white."""


def develop(picture: Picture, exposure: float) -> NDArray[np.uint8]:
    """An (H, W, 3) sRGB image, its exposure `exposure` stops above what the average brightness asks for."""
    light = denoised(picture)
    x = light * (_MIDDLE_GRAY * 2.0**exposure / _average(light, picture))
    x = np.clip(x * (1 + x / _WHITE**2) / (1 + x), 0, 1)
    srgb = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    srgb += _CONTRAST * (srgb**2 * (3 - 2 * srgb) - srgb)
    image: NDArray[np.uint8] = np.round(255 * srgb).astype(np.uint8)
    return image


def denoised(picture: Picture) -> Plane:
    """The radiance, (H, W, 3), with the noise of path tracing filtered out.

    What falls onto a surface varies slowly, its texture does not and is known without noise. So the light is divided
    by the texture, averaged over neighbours on the same smooth surface whose difference the noise explains, and
    multiplied again.

    Source: an edge-avoiding wavelet transform as in Dammertz et al., High Performance Graphics 2010, with the
    variance as in Schied et al., High Performance Graphics 2017.
    """
    radiance, variance = _gathered(picture)
    surface = picture.albedo.max(axis=2) > 0
    albedo = np.where(surface[..., None], picture.albedo, 1) + np.float32(0.01)
    light, variance = radiance / albedo, variance / albedo.mean(axis=2) ** 2
    # Where no path happened to find the lamp, the samples look certain; their neighbours know better.
    for _ in range(4):
        variance = np.maximum(variance, _blurred(variance))
    points = pixel_rays(picture.camera, *picture.depth.shape).astype(np.float32) * picture.depth[..., None]
    # Points apart by a fraction of a pixel's width off the plane through the middle one lie on another surface.
    pixel = np.maximum(picture.depth, 1e-3) / np.float32(picture.camera.fx)
    guides = np.concatenate([picture.normal, points, surface[..., None]], axis=2, dtype=np.float32)
    for level in range(_LEVELS):
        light, variance = _smoothed(light, variance, guides, pixel, 2**level)
    return light * albedo


def _gathered(picture: Picture) -> tuple[Plane, Plane]:
    """Mean of each pixel's paths, (H, W, 3), and the variance of its brightness, (H, W).

    As on a sensor, no path from a surface counts for more than white. A few that meet a lamp by a rare way round would
    else leave bright stains that no filter can tell from light.
    """
    samples = np.nan_to_num(picture.samples, nan=0.0, posinf=0.0)
    brightness = samples.mean(axis=3)
    limit = _CUT * brightness[_scene(picture)].mean()
    cut = np.where(_scene(picture)[..., None], np.minimum(1, limit / np.maximum(brightness, 1e-9)), 1)
    count = samples.shape[2]
    variance = (brightness * cut).var(axis=2, ddof=1) / count
    return (samples * cut[..., None]).mean(axis=2), variance


def _average(light: Plane, picture: Picture) -> float:
    """Geometric mean of the scene's brightness."""
    brightness = light.mean(axis=2)[_scene(picture)]
    return float(np.exp(np.log(np.maximum(brightness, 1e-4)).mean()))


def _scene(picture: Picture) -> NDArray[np.bool_]:
    """(H, W), where there is no lamp; everywhere if there is nothing else."""
    surface: NDArray[np.bool_] = picture.albedo.max(axis=2) > 0
    return surface if surface.any() else ~surface


def _smoothed(
    light: Plane,
    variance: Plane,
    guides: Plane,
    pixel: Plane,
    step: int,
) -> tuple[Plane, Plane]:
    """One level of the transform: a 3 x 3 kernel whose taps are `step` pixels apart."""
    height, width = variance.shape
    # Single pixels that happened to catch much light or none would stand apart from all their neighbours.
    brightness = _blurred(light.mean(axis=2))
    spread = 2.5 * np.sqrt(_blurred(variance)) + 1e-4
    planes = np.concatenate([light, variance[..., None], brightness[..., None], guides], axis=2)
    planes = np.pad(planes, ((step, step), (step, step), (0, 0)))
    total, total_light, total_variance = np.ones_like(variance), light.copy(), variance.copy()
    normal, point, surface = guides[..., :3], guides[..., 3:6], guides[..., 6]
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        y, x = step * (1 + dy), step * (1 + dx)
        other = planes[y : y + height, x : x + width]
        off = np.abs(_dot(normal, other[..., 8:11] - point)) / (2 * pixel)
        turn = 24 * (1 - _dot(normal, other[..., 5:8]))
        noise = np.abs(other[..., 4] - brightness) / spread
        weight = np.exp(-(off + turn + noise)) * (other[..., 11] * surface * 0.5 ** (abs(dx) + abs(dy)))
        total += weight
        total_light += weight[..., None] * other[..., :3]
        total_variance += weight**2 * other[..., 3]
    return total_light / total[..., None], total_variance / total**2


def _dot(a: Plane, b: Plane) -> Plane:
    product: Plane = np.einsum("hwc,hwc->hw", a, b)
    return product


def _blurred(plane: Plane) -> Plane:
    """The plane under a 3 x 3 binomial kernel, its border repeated."""
    for axis in (0, 1):
        pad = [(1, 1) if k == axis else (0, 0) for k in range(2)]
        padded = np.pad(plane, pad, mode="edge")
        low, middle, high = (np.take(padded, range(k, k + plane.shape[axis]), axis=axis) for k in range(3))
        plane = (low + 2 * middle + high) / 4
    return plane
