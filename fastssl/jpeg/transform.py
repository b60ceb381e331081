"""The inverse cosine transform, bit for bit that of libjpeg's accurate one in whole numbers.

The method is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989), as libjpeg's `jidctint.c` computes it: 13 bits
behind the point in constants, two more in what lies between columns and rows.

LANES blocks are transformed side by side, so that every step is one of vectors and nothing is ever transposed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import inlined, kernel
from fastssl.jpeg.layout import LANES

_Eight = tuple[np.int32, np.int32, np.int32, np.int32, np.int32, np.int32, np.int32, np.int32]

_BITS, _BETWEEN = 13, 2
_LARGEST = 1 << 14
SEEN_RANGE = 64 * LANES
"""Behind the values between columns and rows, a number for each lane; see `is_in_range`."""


@inlined
def transform(
    coefficients: NDArray[np.int16],
    first: int,
    factors: NDArray[np.int32],
    between: NDArray[np.int32],
    plane: NDArray[np.uint64],
    row: int,
    first_block: int,
) -> None:
    """The pixels of LANES blocks.

    Args:
        coefficients: those from `first` on, (64, LANES), before they are multiplied by their factors.
        first: of the blocks.
        factors: (64,) of a block's coefficients.
        between: (65 * LANES,) memory to work in, the last LANES of them zeros in the beginning.
        plane: (H, W / 8) eight pixels of a row in each number, the first lowest; filled from there on.
        row: of the plane.
        first_block: its number in its row.
    """
    for x in range(8):
        f0, f1, f2, f3 = factors[x], factors[x + 8], factors[x + 16], factors[x + 24]
        f4, f5, f6, f7 = factors[x + 32], factors[x + 40], factors[x + 48], factors[x + 56]
        for lane in range(LANES):
            place = x * LANES + lane
            k = first + place
            stored = (
                np.int32(coefficients[k] * f0),
                np.int32(coefficients[k + 8 * LANES] * f1),
                np.int32(coefficients[k + 16 * LANES] * f2),
                np.int32(coefficients[k + 24 * LANES] * f3),
                np.int32(coefficients[k + 32 * LANES] * f4),
                np.int32(coefficients[k + 40 * LANES] * f5),
                np.int32(coefficients[k + 48 * LANES] * f6),
                np.int32(coefficients[k + 56 * LANES] * f7),
            )
            between[SEEN_RANGE + lane] |= _range(stored)
            eight = _one_way(stored, _BITS - _BETWEEN)
            between[place] = eight[0]
            between[place + 8 * LANES] = eight[1]
            between[place + 16 * LANES] = eight[2]
            between[place + 24 * LANES] = eight[3]
            between[place + 32 * LANES] = eight[4]
            between[place + 40 * LANES] = eight[5]
            between[place + 48 * LANES] = eight[6]
            between[place + 56 * LANES] = eight[7]
    for y in range(8):
        for lane in range(LANES):
            place = 8 * y * LANES + lane
            middle = (
                between[place],
                between[place + LANES],
                between[place + 2 * LANES],
                between[place + 3 * LANES],
                between[place + 4 * LANES],
                between[place + 5 * LANES],
                between[place + 6 * LANES],
                between[place + 7 * LANES],
            )
            between[SEEN_RANGE + lane] |= _range(middle)
            eight = _one_way(middle, _BITS + _BETWEEN + 3)
            plane[row + y, first_block + lane] = (
                _pixel(eight[0])
                | _pixel(eight[1]) << np.uint64(8)
                | _pixel(eight[2]) << np.uint64(16)
                | _pixel(eight[3]) << np.uint64(24)
                | _pixel(eight[4]) << np.uint64(32)
                | _pixel(eight[5]) << np.uint64(40)
                | _pixel(eight[6]) << np.uint64(48)
                | _pixel(eight[7]) << np.uint64(56)
            )


@kernel
def is_in_range(between: NDArray[np.int32]) -> bool:
    """Whether all values since the beginning were within 15 bits, as those of any image are.

    With others libjpeg's vectors, which have 16 bits for them, come to other pixels than this, and to others than its
    own plain C.
    """
    seen = np.int32(0)
    for lane in range(LANES):
        seen |= between[SEEN_RANGE + lane]
    return bool(0 <= seen < 2 * _LARGEST)


@inlined
def _pixel(value: np.int32) -> np.uint64:
    return np.uint64(min(max(np.int32(value + 128), np.int32(0)), np.int32(255)))


@inlined
def _range(eight: _Eight) -> np.int32:
    """A number of 15 bits if all eight are numbers of 15 bits with their sign."""
    c0, c1, c2, c3, c4, c5, c6, c7 = eight
    low = np.int32(_LARGEST)
    some = np.int32(c0 + low) | np.int32(c1 + low) | np.int32(c2 + low) | np.int32(c3 + low)
    return np.int32(some | np.int32(c4 + low) | np.int32(c5 + low) | np.int32(c6 + low) | np.int32(c7 + low))


@inlined
def _one_way(eight: _Eight, shift: int) -> _Eight:
    """Eight values of a column or a row, rounded by so many bits."""
    c0, c1, c2, c3, c4, c5, c6, c7 = eight
    half = np.int32(1 << (shift - 1))
    even = np.int32(np.int32(c2 + c6) * np.int32(4433))
    e2, e3 = np.int32(even - np.int32(c6 * np.int32(15137))), np.int32(even + np.int32(c2 * np.int32(6270)))
    e0, e1 = np.int32((c0 + c4) << _BITS), np.int32((c0 - c4) << _BITS)
    s0, s3 = np.int32(e0 + e3 + half), np.int32(e0 - e3 + half)
    s1, s2 = np.int32(e1 + e2 + half), np.int32(e1 - e2 + half)
    z1, z2 = np.int32(np.int32(c7 + c1) * np.int32(-7373)), np.int32(np.int32(c5 + c3) * np.int32(-20995))
    z3, z4 = np.int32(c7 + c3), np.int32(c5 + c1)
    z5 = np.int32(np.int32(z3 + z4) * np.int32(9633))
    z3, z4 = np.int32(np.int32(z3 * np.int32(-16069)) + z5), np.int32(np.int32(z4 * np.int32(-3196)) + z5)
    o0, o1 = np.int32(np.int32(c7 * np.int32(2446)) + z1 + z3), np.int32(np.int32(c5 * np.int32(16819)) + z2 + z4)
    o2, o3 = np.int32(np.int32(c3 * np.int32(25172)) + z2 + z3), np.int32(np.int32(c1 * np.int32(12299)) + z1 + z4)
    return (
        np.int32(np.int32(s0 + o3) >> shift),
        np.int32(np.int32(s1 + o2) >> shift),
        np.int32(np.int32(s2 + o1) >> shift),
        np.int32(np.int32(s3 + o0) >> shift),
        np.int32(np.int32(s3 - o0) >> shift),
        np.int32(np.int32(s2 - o1) >> shift),
        np.int32(np.int32(s1 - o2) >> shift),
        np.int32(np.int32(s0 - o3) >> shift),
    )
