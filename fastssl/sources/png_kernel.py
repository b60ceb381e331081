"""The filters of a PNG's rows undone, compiled, on one core.

Four of five filters keep the difference of a byte from what its neighbours let expect: the byte of the same channel one
pixel to the left, the one above, and the one above that (PNG specification, third edition, 9). So the bytes of a row
wait for each other, but the rows below can follow, each a pixel behind the one above it. Bytes that can be had at the
same time are laid side by side here, in a step, which makes short loops of them that become vector instructions. They
are laid out, and back, by tiles of 8 rows and as many steps, in vectors too: byte by byte that took twice the time of
all else.

It is a module of its own because numba takes a second to load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled, inlined, kernel
from fastssl.tile import TILE, turn_tile

_Bytes = NDArray[np.uint8]

_ROWS = np.uint64(64)
"""Rows that are undone together."""
_TILE = np.uint64(TILE)


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
    length, size = np.uint64(rows.shape[1]), np.uint64(len(pixel))
    steps, lanes = length // size + _ROWS, _ROWS * size
    differences, values = np.empty((steps, lanes), np.uint8), np.empty((steps + np.uint64(2), size + lanes), np.uint8)
    # What is to the left of a row's first pixel is 0, and so is what is above the first row.
    differences[:_ROWS], values[:2] = 0, 0
    filters, above = np.zeros((4, lanes), np.uint8), np.zeros(length, np.uint8)
    return _undo_in_memory(filtered, pixel, differences, values, filters, above, rows)


@kernel
def _undo_in_memory(
    filtered: _Bytes,
    pixel: tuple[int, ...],
    differences: _Bytes,
    values: _Bytes,
    filters: _Bytes,
    above: _Bytes,
    rows: _Bytes,
) -> int:
    """Undo the filters.

    Args:
        differences: (steps, lanes) what is in `filtered`, with pixel x of row r in step x + r.
        values: (2 + steps, 1 + lanes) the same of `rows`, behind two empty steps, and with the row above, whose pixel x
            is in step x - 1 therefore.
        filters: (4, lanes), for `_set_filter`.
        above: (W,) the row above the first.
    """
    height, size = np.uint64(0), np.uint64(len(pixel))
    while height < len(rows) and filtered[height, 0] <= 4:
        height += np.uint64(1)
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
            _lay_out(filtered[first:stop, 1:], pixel, differences)
            _lay_out(above.reshape(1, -1), pixel, values[1:])
            _undo_steps(differences, size, filters, values)
            _gather(values[2:, size:], pixel, rows[first:stop])
        above, first = rows[stop - np.uint64(1)], stop
    return int(height)


@kernel
def _undo_above(filtered: _Bytes, above: _Bytes, row: _Bytes) -> None:
    """A row whose bytes do not wait for each other."""
    counts = np.uint8(255) if filtered[0] == 2 else np.uint8(0)
    differences = filtered[1:]
    for k in range(np.uint64(len(row))):
        row[k] = differences[k] + (above[k] & counts)


@kernel
def _set_filter(kind: np.uint8, counts: _Bytes) -> None:
    """The neighbours that count, 255 or 0 for each byte of a pixel: left, up and corner, or the mean of the first two.

    Paeth's rule chooses between all three, and chooses the only one that counts.
    """
    counts[0] = 255 if kind == 1 or kind >= 3 else 0
    counts[1] = 255 if kind >= 2 else 0
    counts[2] = 255 if kind == 4 else 0
    counts[3] = 255 if kind == 3 else 0


@kernel
def _lay_out(rows: _Bytes, pixel: tuple[int, ...], steps: _Bytes) -> None:
    """The pixels of rows, each row a step behind the one above it."""
    size, width = np.uint64(len(pixel)), np.uint64(rows.shape[1] // len(pixel))
    row, step = np.uint64(rows.strides[0]), np.uint64(steps.strides[0])
    tiled, tiles = _tiles(np.uint64(len(rows)), width)
    for first in range(np.uint64(0), tiled, _TILE):
        for x in range(_TILE - np.uint64(1), _TILE * tiles, _TILE):
            source = np.uint64(rows.ctypes.data) + first * row + x * size
            out = np.uint64(steps.ctypes.data) + (first + x) * step + first * size
            turn_tile(source, row - size, out, step, pixel)
    for i in range(np.uint64(len(rows))):
        start, stop = _tiled_pixels(np.uint64(i), tiled, tiles)
        for begin, end in ((np.uint64(0), start), (stop, width)):
            for x in range(begin, end):
                for channel in range(size):
                    steps[x + i, i * size + channel] = rows[i, x * size + channel]


@kernel
def _gather(steps: _Bytes, pixel: tuple[int, ...], rows: _Bytes) -> None:
    """The rows that were laid out."""
    size, width = np.uint64(len(pixel)), np.uint64(rows.shape[1] // len(pixel))
    row, step = np.uint64(rows.strides[0]), np.uint64(steps.strides[0])
    tiled, tiles = _tiles(np.uint64(len(rows)), width)
    for first in range(np.uint64(0), tiled, _TILE):
        for x in range(_TILE - np.uint64(1), _TILE * tiles, _TILE):
            source = np.uint64(steps.ctypes.data) + (first + x) * step + first * size
            out = np.uint64(rows.ctypes.data) + first * row + x * size
            turn_tile(source, step, out, row - size, pixel)
    for i in range(np.uint64(len(rows))):
        start, stop = _tiled_pixels(np.uint64(i), tiled, tiles)
        for begin, end in ((np.uint64(0), start), (stop, width)):
            for x in range(begin, end):
                for channel in range(size):
                    rows[i, x * size + channel] = steps[x + i, i * size + channel]


@inlined
def _tiles(height: np.uint64, width: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Rows that lie in tiles, and the number of tiles of each.

    What is a tile among the steps is slanted among the rows: the last row begins with its first pixel, and each of the
    others one pixel further right than the one below.
    """
    tiles = (width - _TILE + np.uint64(1)) // _TILE if width >= _TILE else np.uint64(0)
    return height - height % _TILE if tiles > 0 else np.uint64(0), tiles


@inlined
def _tiled_pixels(i: np.uint64, tiled: np.uint64, tiles: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The first pixel of a row that lies in a tile, and the one behind the last."""
    if i >= tiled:
        return np.uint64(0), np.uint64(0)
    start = _TILE - np.uint64(1) - i % _TILE
    return start, start + _TILE * tiles


@kernel
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


@inlined
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
