"""Brightness and two colours at half the resolution to RGB, bit for bit as libjpeg does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import inlined

_Bytes = NDArray[np.uint8]


@inlined
def enlarge(colour: _Bytes, near: int, far: int, sums: NDArray[np.int16], enlarged: _Bytes) -> None:
    """One row of a colour at twice its resolution: of the four pixels around each, the nearest counts 9, 3, 3 and 1.

    libjpeg calls that fancy upsampling; the rounding of every second pixel is its own.

    Args:
        colour: (H, W) of the lower resolution.
        near: the row that the pixels lie in.
        far: the next one on their other side, or the same at the border.
        sums: (W + 2,) memory to work in.
        enlarged: (2 W,) to be filled.
    """
    width = np.uintp(colour.shape[1])
    above, below = np.uintp(near), np.uintp(far)
    for x in range(width):
        sums[x + np.uintp(1)] = np.int16(3 * np.int16(colour[above, x]) + np.int16(colour[below, x]))
    sums[0], sums[width + np.uintp(1)] = sums[1], sums[width]
    for x in range(width):
        before, here, behind = sums[x], 3 * sums[x + np.uintp(1)], sums[x + np.uintp(2)]
        enlarged[np.uintp(2) * x] = np.uint8((here + before + 8) >> 4)
        enlarged[np.uintp(2) * x + np.uintp(1)] = np.uint8((here + behind + 7) >> 4)


@inlined
def to_rgb(brightness: _Bytes, blue: _Bytes, red: _Bytes, rgb: _Bytes) -> None:
    """A row of pixels (JFIF 1.02, with 16 bits behind the point).

    Args:
        brightness, blue, red: (W,) Y, Cb and Cr.
        rgb: (3 W,) to be filled.
    """
    for x in range(np.uintp(len(brightness))):
        y, cb, cr = np.int32(brightness[x]), np.int32(blue[x]) - 128, np.int32(red[x]) - 128
        place = np.uintp(3) * x
        rgb[place] = _clamped(y + ((91881 * cr + 32768) >> 16))
        rgb[place + np.uintp(1)] = _clamped(y + ((-22554 * cb - 46802 * cr + 32768) >> 16))
        rgb[place + np.uintp(2)] = _clamped(y + ((116130 * cb + 32768) >> 16))


@inlined
def _clamped(value: np.int32) -> np.uint8:
    return np.uint8(min(max(np.int32(value), np.int32(0)), np.int32(255)))
