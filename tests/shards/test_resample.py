"""Stretched images against the exact filter in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastssl.shards.resample import stretched


def exactly_stretched(image: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Lanczos by its definition: every output pixel a normalised sum over all input pixels."""
    values = image.astype(np.float64)
    for axis in (0, 1):
        side = image.shape[axis]
        scale = side / size
        distance = (np.arange(side) + 0.5 - scale * (np.arange(size)[:, None] + 0.5)) / max(scale, 1)
        weight = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        values = np.moveaxis(np.tensordot(weight, values, (1, axis)), 0, axis)
    return values.clip(0, 255)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(240, 320, 256), (97, 41, 64), (16, 200, 32), (512, 31, 40), (64, 64, 32), (32, 16, 32), (1, 1, 8), (2, 3, 1)],
)
def test_an_image_is_within_one_level_of_the_exact_filter(height: int, width: int, size: int) -> None:
    rng = np.random.default_rng(0)
    extremes = rng.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)  # overshoots most
    for image in (extremes, rng.integers(0, 256, (height, width, 3), np.uint8)):
        seen = stretched(image, size)
        assert (seen.shape, seen.dtype) == ((size, size, 3), np.uint8)
        assert np.abs(seen - exactly_stretched(image, size)).max() <= 0.6


def test_a_smooth_image_is_that_of_pillow() -> None:
    rows, columns = np.mgrid[:150, :200]
    planes = [rows + columns / 2, 128 + 60 * np.sin(columns / 9), 40 + columns / 2]
    image = np.rint(np.stack(planes, axis=2)).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS))
    assert np.abs(stretched(image, 64).astype(int) - pillow).max() <= 1


def test_an_image_of_one_colour_keeps_it() -> None:
    for level in (0, 1, 127, 254, 255):
        image = np.full((37, 90, 3), level, np.uint8)
        np.testing.assert_array_equal(stretched(image, 50), level)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    assert stretched(image, 24) is image


def test_an_image_may_be_a_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    np.testing.assert_array_equal(stretched(image[::-1, ::2], 32), stretched(image[::-1, ::2].copy(), 32))
