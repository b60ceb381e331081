"""The filters of a PNG's rows undone, compiled, on one core.

Four of five filters keep the difference of a byte from what its neighbours let expect: the byte of the same channel one
pixel to the left, the one above, and the one above that. Differences from above are undone many bytes at once; all
others wait for the byte before, and what counts is how few steps that takes (PNG specification, third edition, 9).

It is a module of its own because numba takes a second to load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled

_Bytes = NDArray[np.uint8]

_BYTE = np.int32(255)


@compiled
def undo_filters(filtered: _Bytes, pixel: int, rows: _Bytes) -> int:
    """Fill `rows`, (H, W) bytes, from `filtered`, (H, 1 + W), whose first column holds the filters.

    Args:
        pixel: bytes of a pixel; W is a multiple of it.

    Returns:
        The number of rows that are done; less than H where the next one's filter does not exist.
    """
    above = np.zeros(rows.shape[1], np.uint8)
    i = 0
    while i < len(rows):
        kind, differences, row = filtered[i, 0], filtered[i, 1:], rows[i]
        if kind == 0:
            row[:] = differences
        elif kind == 1:
            _undo_left(differences, pixel, row)
        elif kind == 2:
            _undo_above(differences, above, row)
        elif kind == 3:
            _undo_average(differences, above, pixel, row)
        elif kind == 4 and i + 1 < len(rows) and filtered[i + 1, 0] == 4:
            _undo_paeth_twice(differences, filtered[i + 1, 1:], above, pixel, row, rows[i + 1])
            i += 1
        elif kind == 4:
            _undo_paeth(differences, above, pixel, row)
        else:
            return i
        above = rows[i]
        i += 1
    return i


@compiled
def _undo_left(differences: _Bytes, pixel: int, row: _Bytes) -> None:
    for channel in range(pixel):
        left = np.uint8(0)
        for k in range(channel, len(row), pixel):
            left += differences[k]
            row[k] = left


@compiled
def _undo_above(differences: _Bytes, above: _Bytes, row: _Bytes) -> None:
    for k in range(len(row)):
        row[k] = differences[k] + above[k]


@compiled
def _undo_average(differences: _Bytes, above: _Bytes, pixel: int, row: _Bytes) -> None:
    for channel in range(pixel):
        left = np.int32(0)
        for k in range(channel, len(row), pixel):
            left = (np.int32(differences[k]) + ((left + np.int32(above[k])) >> 1)) & _BYTE
            row[k] = left


@compiled
def _undo_paeth(differences: _Bytes, above: _Bytes, pixel: int, row: _Bytes) -> None:
    for channel in range(pixel):
        left, corner = np.int32(0), np.int32(0)
        for k in range(np.uint64(channel), np.uint64(len(row)), np.uint64(pixel)):
            up = np.int32(above[k])
            left = (np.int32(differences[k]) + _nearest(left, up, corner)) & _BYTE
            row[k], corner = left, up


@compiled
def _undo_paeth_twice(
    differences: _Bytes, differences_below: _Bytes, above: _Bytes, pixel: int, row: _Bytes, below: _Bytes
) -> None:
    """Two rows, the lower one a pixel behind, and two channels at a time.

    While one byte waits for the one before, the processor works on the other three. Of an odd number of channels the
    last one is done twice.
    """
    step, end = np.uint64(pixel), np.uint64(len(row))
    for channel in range(0, pixel, 2):
        k, k_2 = np.uint64(channel), np.uint64(min(channel + 1, pixel - 1))
        up, up_2 = np.int32(above[k]), np.int32(above[k_2])
        # A row's first pixel has nothing to its left, and what is above it is the nearest.
        left, left_2 = (np.int32(differences[k]) + up) & _BYTE, (np.int32(differences[k_2]) + up_2) & _BYTE
        row[k], row[k_2] = left, left_2
        corner, corner_2 = up, up_2
        low_left, low_left_2 = np.int32(0), np.int32(0)
        low_corner, low_corner_2 = np.int32(0), np.int32(0)
        while k + step < end:
            low_left = (np.int32(differences_below[k]) + _nearest(low_left, left, low_corner)) & _BYTE
            low_left_2 = (np.int32(differences_below[k_2]) + _nearest(low_left_2, left_2, low_corner_2)) & _BYTE
            below[k], below[k_2] = low_left, low_left_2
            low_corner, low_corner_2 = left, left_2
            k += step
            k_2 += step
            up, up_2 = np.int32(above[k]), np.int32(above[k_2])
            left = (np.int32(differences[k]) + _nearest(left, up, corner)) & _BYTE
            left_2 = (np.int32(differences[k_2]) + _nearest(left_2, up_2, corner_2)) & _BYTE
            row[k], row[k_2] = left, left_2
            corner, corner_2 = up, up_2
        below[k] = (np.int32(differences_below[k]) + _nearest(low_left, left, low_corner)) & _BYTE
        below[k_2] = (np.int32(differences_below[k_2]) + _nearest(low_left_2, left_2, low_corner_2)) & _BYTE


@compiled
def _nearest(left: np.int32, up: np.int32, corner: np.int32) -> np.int32:
    """Whichever is nearest to left + up - corner, by Paeth's rule, without a branch.

    The corner is the nearest one while it lies within the middle third between the other two; beyond that it is the
    one on the far side. A test compares all 2^24 cases with the rule as it is written.
    """
    low, high = min(left, up), max(left, up)
    rest = corner + corner + corner - left - up
    lower = low if high <= rest else corner
    return high if rest <= low else lower
