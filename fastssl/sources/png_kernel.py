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
            if pixel % 3 == 0:
                _undo_paeth_of_three(differences, filtered[i + 1, 1:], above, pixel, row, rows[i + 1])
            else:
                _undo_paeth_of_two(differences, filtered[i + 1, 1:], above, pixel, row, rows[i + 1])
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
            left = _byte(differences[k], left, up, corner)
            row[k], corner = left, up


@compiled
def _undo_paeth_of_two(
    differences: _Bytes, differences_below: _Bytes, above: _Bytes, pixel: int, row: _Bytes, below: _Bytes
) -> None:
    """Two rows, the lower one a pixel behind, of pixels of one or two bytes; a single one is done twice.

    While one byte waits for the one before, the processor works on the others.
    """
    step, end = np.uint64(pixel), np.uint64(len(row))
    k, m = np.uint64(0), np.uint64(pixel - 1)
    up_k, up_m = np.int32(above[k]), np.int32(above[m])
    # A row's first pixel has nothing to its left, and what is above it is the nearest.
    left_k, left_m = (np.int32(differences[k]) + up_k) & _BYTE, (np.int32(differences[m]) + up_m) & _BYTE
    low_k = low_m = corner_k = corner_m = np.int32(0)
    while m + step < end:
        row[k], row[m] = left_k, left_m
        low_k = _byte(differences_below[k], low_k, left_k, corner_k)
        low_m = _byte(differences_below[m], low_m, left_m, corner_m)
        below[k], below[m] = low_k, low_m
        corner_k, corner_m = left_k, left_m
        k, m = k + step, m + step
        next_k, next_m = np.int32(above[k]), np.int32(above[m])
        left_k, left_m = _byte(differences[k], left_k, next_k, up_k), _byte(differences[m], left_m, next_m, up_m)
        up_k, up_m = next_k, next_m
    row[k], row[m] = left_k, left_m
    below[k] = _byte(differences_below[k], low_k, left_k, corner_k)
    below[m] = _byte(differences_below[m], low_m, left_m, corner_m)


@compiled
def _undo_paeth_of_three(
    differences: _Bytes, differences_below: _Bytes, above: _Bytes, pixel: int, row: _Bytes, below: _Bytes
) -> None:
    """As `_undo_paeth_of_two`, of pixels of three bytes or six."""
    step, end = np.uint64(pixel), np.uint64(len(row))
    for first in range(0, pixel, 3):
        k, m, n = np.uint64(first), np.uint64(first + 1), np.uint64(first + 2)
        up_k, up_m, up_n = np.int32(above[k]), np.int32(above[m]), np.int32(above[n])
        left_k, left_m = (np.int32(differences[k]) + up_k) & _BYTE, (np.int32(differences[m]) + up_m) & _BYTE
        left_n = (np.int32(differences[n]) + up_n) & _BYTE
        low_k = low_m = low_n = corner_k = corner_m = corner_n = np.int32(0)
        while n + step < end:
            row[k], row[m], row[n] = left_k, left_m, left_n
            low_k = _byte(differences_below[k], low_k, left_k, corner_k)
            low_m = _byte(differences_below[m], low_m, left_m, corner_m)
            low_n = _byte(differences_below[n], low_n, left_n, corner_n)
            below[k], below[m], below[n] = low_k, low_m, low_n
            corner_k, corner_m, corner_n = left_k, left_m, left_n
            k, m, n = k + step, m + step, n + step
            next_k, next_m, next_n = np.int32(above[k]), np.int32(above[m]), np.int32(above[n])
            left_k, left_m = _byte(differences[k], left_k, next_k, up_k), _byte(differences[m], left_m, next_m, up_m)
            left_n = _byte(differences[n], left_n, next_n, up_n)
            up_k, up_m, up_n = next_k, next_m, next_n
        row[k], row[m], row[n] = left_k, left_m, left_n
        below[k] = _byte(differences_below[k], low_k, left_k, corner_k)
        below[m] = _byte(differences_below[m], low_m, left_m, corner_m)
        below[n] = _byte(differences_below[n], low_n, left_n, corner_n)


@compiled
def _byte(difference: np.uint8, left: np.int32, up: np.int32, corner: np.int32) -> np.int32:
    return (np.int32(difference) + _nearest(left, up, corner)) & _BYTE


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
