"""The filters of a PNG's rows undone, compiled, on one core.

Four of five filters keep the difference of a byte from what its neighbours let expect: the byte of the same channel one
pixel to the left, the one above, and the one above that (PNG specification, third edition, 9). So the bytes of a row
wait for each other, but the rows below can follow, each a pixel behind the one above it. Bytes that can be had at the
same time are laid side by side here, in a step, which makes short loops of them that become vector instructions.

It is a module of its own because numba takes a second to load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled

_Bytes = NDArray[np.uint8]

_ROWS = np.uint64(32)
"""Rows that are undone together."""


def undo_filters(filtered: _Bytes, pixel: int, rows: _Bytes) -> int:
    """Fill `rows`, (H, W) bytes, from `filtered`, (H, 1 + W), whose first column holds the filters.

    Args:
        pixel: bytes of a pixel; W is a multiple of it.

    Returns:
        The number of rows that are done; less than H where the next one's filter does not exist.
    """
    # The compiler knows the length of a tuple, and unrolls the loops over the bytes of a pixel.
    done: int = _undo(filtered, (0,) * pixel, rows)
    return done


@compiled
def _undo(filtered: _Bytes, pixel: tuple[int, ...], rows: _Bytes) -> int:
    height, length, size = np.uint64(0), np.uint64(rows.shape[1]), np.uint64(len(pixel))
    while height < len(rows) and filtered[height, 0] <= 4:
        height += np.uint64(1)
    # Pixel x of row r is in step x + r; what is to the left of a row's first pixel stays 0.
    steps, lanes = length // size + _ROWS, _ROWS * size
    differences = np.zeros((steps, lanes), np.uint8)
    # Behind two empty steps, and with the row above, whose pixel x is in step x - 1 therefore.
    values = np.zeros((steps + np.uint64(2), size + lanes), np.uint8)
    filters, above = np.zeros((4, lanes), np.uint8), np.zeros(length, np.uint8)
    first = np.uint64(0)
    while first < height:
        if filtered[first, 0] == 0 or filtered[first, 0] == 2:
            _undo_above(filtered[first], above, rows[first])
            stop = first + np.uint64(1)
        else:
            stop = min(first + _ROWS, height)
            for i in range(first, stop):
                lane = (i - first) * size
                _set_filter(filtered[i, 0], filters[:, lane : lane + size])
                _lay_out(filtered[i, 1:], pixel, differences[i - first :, lane:])
            _lay_out(above, pixel, values[1:])
            _undo_steps(differences, size, filters, values)
            for i in range(first, stop):
                lane = (i - first) * size
                _gather(values[i - first + np.uint64(2) :, lane + size :], pixel, rows[i])
        above, first = rows[stop - np.uint64(1)], stop
    return int(height)


@compiled
def _undo_above(filtered: _Bytes, above: _Bytes, row: _Bytes) -> None:
    """A row whose bytes do not wait for each other."""
    counts = np.uint8(255) if filtered[0] == 2 else np.uint8(0)
    differences = filtered[1:]
    for k in range(np.uint64(len(row))):
        row[k] = differences[k] + (above[k] & counts)


@compiled
def _set_filter(kind: np.uint8, counts: _Bytes) -> None:
    """The neighbours that count, 255 or 0 for each byte of a pixel: left, up and corner, or the mean of the first two.

    Paeth's rule chooses between all three, and chooses the only one that counts.
    """
    counts[0] = 255 if kind == 1 or kind >= 3 else 0
    counts[1] = 255 if kind >= 2 else 0
    counts[2] = 255 if kind == 4 else 0
    counts[3] = 255 if kind == 3 else 0


@compiled
def _lay_out(row: _Bytes, pixel: tuple[int, ...], steps: _Bytes) -> None:
    """The pixels of a row, one a step."""
    size = np.uint64(len(pixel))
    for x in range(np.uint64(len(row)) // size):
        for channel in range(size):
            steps[x, channel] = row[x * size + channel]


@compiled
def _gather(steps: _Bytes, pixel: tuple[int, ...], row: _Bytes) -> None:
    size = np.uint64(len(pixel))
    for x in range(np.uint64(len(row)) // size):
        for channel in range(size):
            row[x * size + channel] = steps[x, channel]


@compiled
def _undo_steps(differences: _Bytes, size: np.uint64, filters: _Bytes, values: _Bytes) -> None:
    """The bytes of each step, from those of the two before."""
    left_counts, up_counts, corner_counts, is_mean = filters[0], filters[1], filters[2], filters[3]
    for step in range(np.uint64(len(differences))):
        difference, value = differences[step], values[step + np.uint64(2)][size:]
        lefts, ups, corners = values[step + np.uint64(1)][size:], values[step + np.uint64(1)], values[step]
        for k in range(np.uint64(len(difference))):
            left = np.int16(lefts[k] & left_counts[k])
            up = np.int16(ups[k] & up_counts[k])
            corner = np.int16(corners[k] & corner_counts[k])
            nearest, mean = np.uint8(_nearest(left, up, corner)), np.uint8(np.int16(left + up) >> 1)
            value[k] = difference[k] + (nearest ^ ((nearest ^ mean) & is_mean[k]))


@compiled
def _nearest(left: np.int16, up: np.int16, corner: np.int16) -> np.int16:
    """Whichever is nearest to left + up - corner, by Paeth's rule, without a branch.

    The corner is the nearest one while it lies within the middle third between the other two; beyond that it is the
    one on the far side. A test compares all 2^24 cases with the rule as it is written.
    Numba makes 64 bits of every result, and vectors of those are four times as many; hence all the `int16`.
    """
    low, high = np.int16(min(left, up)), np.int16(max(left, up))
    rest = np.int16(np.int16(np.int16(np.int16(corner + corner) + corner) - left) - up)
    lower = low if high <= rest else corner
    return high if rest <= low else lower
