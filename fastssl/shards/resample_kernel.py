"""The loops of `fastssl.shards.resample`, compiled, on one core.

Numbers to index with have no sign, because one that may be negative is tested for counting from the end, which takes as
long again.

It is a module of its own because numba takes a second to load.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastssl.compiled import compiled, kernel
from fastssl.tile import TILE, turn_tile

_TILE = np.uint64(TILE)


@compiled
def filter_rows(rows: Any, taken: Any, weights: Any, shift: int, pixel: Any, out: Any) -> None:
    """Columns of `out`, (W, N, 3): sums of N times a few rows (3 W) by their weights, without their lowest bits.

    Some columns are made as rows, and then turned together.

    Args:
        taken, weights: (N, K) numbers of the rows and their weights; N is a multiple of TILE, and K even.
        pixel: as many numbers as a pixel of `out` has bytes.
    """
    total, tile = np.empty(rows.shape[1], np.int32), np.empty((TILE, rows.shape[1]), out.dtype)
    _fill_columns(rows, taken, weights, shift, total, tile, pixel, out)


@kernel
def _fill_columns(rows: Any, taken: Any, weights: Any, shift: int, total: Any, tile: Any, pixel: Any, out: Any) -> None:
    for first in range(np.uint64(0), np.uint64(len(taken)), _TILE):
        for i in range(_TILE):
            _fill_row(rows, taken[first + i], weights[first + i], shift, total, tile[i])
        _turn(tile, pixel, out[:, first : first + _TILE])


@kernel
def _fill_row(rows: Any, taken: Any, weights: Any, shift: int, total: Any, filled: Any) -> None:
    """Two rows are added at a time, because the sum is read and written each time."""
    length = np.uint64(len(total))
    low, high = np.int32(np.iinfo(filled.dtype).min), np.int32(np.iinfo(filled.dtype).max)
    total[:] = np.int32(1 << (shift - 1))
    for k in range(np.uint64(0), np.uint64(len(taken)), np.uint64(2)):
        one, other = rows[taken[k]], rows[taken[k + np.uint64(1)]]
        weight, other_weight = weights[k], weights[k + np.uint64(1)]
        for j in range(length):
            total[j] += np.int32(one[j]) * weight + np.int32(other[j]) * other_weight
    for j in range(length):
        filled[j] = min(max(total[j] >> shift, low), high)


@kernel
def _turn(rows: Any, pixel: Any, columns: Any) -> None:
    """Rows of pixels, (TILE, 3 W), as columns, (W, TILE, 3)."""
    size, width = np.uint64(len(pixel)), np.uint64(len(columns))
    row, column = np.uint64(rows.strides[0]), np.uint64(columns.strides[0])
    turned = width - width % _TILE
    for x in range(np.uint64(0), turned, _TILE):
        turn_tile(rows.ctypes.data + x * size, row, columns.ctypes.data + x * column, column, pixel)
    for x in range(turned, width):
        for i in range(_TILE):
            for axis in range(np.uint64(3)):
                columns[x, i, axis] = rows[i, np.uint64(3) * x + axis]


@kernel
def take(plane: Any, rows: Any, columns: Any, kept: Any) -> None:
    for i in range(np.uint64(len(rows))):
        stored = plane[rows[i]]
        for j in range(np.uint64(len(columns))):
            kept[i, j] = stored[columns[j]]


@compiled
def take_normals(normal: Any, rows: Any, columns: Any, codes: Any) -> Any:
    """Codes of normals that are stored as codes; whether any is 0 in some coordinates and not in others."""
    x, y, z = np.uint64(0), np.uint64(1), np.uint64(2)
    size, wrong = np.uint64(len(columns)), np.uint8(0)
    flat = codes.reshape(len(codes), -1)
    # Of the coordinates of a row: whether the next one is of the same vector.
    followed = np.empty(flat.shape[1], np.uint8)
    for k in range(np.uint64(flat.shape[1])):
        followed[k] = k % np.uint64(3) < np.uint64(2)
    for i in range(np.uint64(len(rows))):
        stored, row = normal[rows[i]], flat[i]
        for j in range(size):
            column, at = columns[j], np.uint64(3) * j
            row[at], row[at + y], row[at + z] = stored[column, x], stored[column, y], stored[column, z]
        for k in range(np.uint64(len(row) - 1)):
            wrong |= ((row[k] > 0) != (row[k + y] > 0)) & followed[k]
    return wrong > 0


@compiled
def quantise_depth(depth: Any, rows: Any, columns: Any, millimetres: Any) -> None:
    """Millimetres of depth, by rows: first the pixels that are kept, then a short loop over them, which vectorises."""
    size = np.uint64(len(columns))
    metres = np.empty(size, depth.dtype)
    for i in range(np.uint64(len(rows))):
        stored = depth[rows[i]]
        for j in range(size):
            metres[j] = stored[columns[j]]
        for j in range(size):
            whole = np.rint(np.float64(metres[j]) * 1000)
            millimetres[i, j] = np.uint16(np.int32(whole)) if 0 < whole <= 65535 else np.uint16(0)  # false for NaN


@compiled
def quantise_normals(normal: Any, rows: Any, columns: Any, codes: Any) -> None:
    """Codes of normals, made as depth is, one coordinate after the other."""
    size = np.uint64(len(columns))
    vector, square = np.empty((3, size), normal.dtype), np.empty(size, normal.dtype)
    code, known = np.empty((3, size), np.uint8), np.empty(size, np.uint8)
    for i in range(np.uint64(len(rows))):
        stored = normal[rows[i]]
        square[:] = 0
        for axis in range(np.uint64(3)):
            for j in range(size):
                vector[axis, j] = stored[columns[j], axis]
            for j in range(size):
                square[j] += vector[axis, j] * vector[axis, j]
        for j in range(size):
            known[j] = np.uint8(255) if (square[j] > 0) & (square[j] < np.float32(np.inf)) else np.uint8(0)
        for axis in range(np.uint64(3)):
            for j in range(size):
                scaled = np.rint((vector[axis, j] + np.float32(1)) * np.float32(127.5))
                code[axis, j] = np.uint8(np.int32(min(max(scaled, np.float32(1)), np.float32(255)))) & known[j]
        for j in range(size):
            for axis in range(np.uint64(3)):
                codes[i, j, axis] = code[axis, j]


@kernel
def mark_edge(instance: Any, edge: Any) -> None:
    size = np.uint64(len(instance))
    for i in range(size):
        # The last row has none below it, and the last pixel none to its right.
        here, below = instance[i], instance[min(i + np.uint64(1), size - np.uint64(1))]
        for j in range(size):
            edge[i, j] = here[j] != below[j]
        for j in range(size - np.uint64(1)):
            edge[i, j] |= here[j] != here[j + np.uint64(1)]
