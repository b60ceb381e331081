"""Images and planes stretched to squares, compiled, on one core.

Images by a Lanczos filter in whole numbers. It is Pillow's (three lobes, as wide as the coarser of the two grids), at
five times the speed: output rows are weighted sums of whole input rows, written as columns, so that a second pass makes
the columns and turns the image back. Between the two passes values keep 6 bits behind the point and are not cut off at
black and white, so the result is within one level of the exact filter, and whole numbers make it the same everywhere.

Numbers to index with have no sign, because one that may be negative is tested for counting from the end, which takes as
long again.

Planes by the nearest pixel. Depth and normals become in the same pass what a shard holds; only pixels that are
kept are converted, which is four times as fast as doing one after the other in NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled

_LOBES = 3
_WEIGHT_BITS, _VALUE_BITS = 15, 6
"""Bits behind the point, of weights and of values between the passes. Their sums stay below 2^31, because the absolute
weights of a pixel add up to less than 1.6."""
_TILE = np.uint64(8)
"""Columns that are written side by side."""


def stretched(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An (H, W, 3) image as (size, size, 3); the image itself if that is its size."""
    height, width, _ = image.shape
    if height == width == size:
        return image
    by_rows, by_columns = _weights(height, size), _weights(width, size)
    padded = len(by_rows.values)
    between, out = np.empty((width, padded, 3), np.int16), np.empty((padded, padded, 3), np.uint8)
    filter_rows = compiled(_filter_rows)
    filter_rows(_rows(image), *by_rows, _WEIGHT_BITS - _VALUE_BITS, between)
    filter_rows(_rows(between), *by_columns, _WEIGHT_BITS + _VALUE_BITS, out)
    return out[:size, :size]


def nearest_edge(instance: NDArray[np.integer], size: int) -> NDArray[np.bool_]:
    """`fastssl.geometry.edge_of` of an (H, W) plane that was stretched to (size, size)."""
    rows, columns = (_nearest_pixels(side, size) for side in instance.shape)
    kept, edge = np.empty((size, size), instance.dtype), np.empty((size, size), np.bool_)
    compiled(_take)(instance, rows, columns, kept)
    compiled(_mark_edge)(kept, edge)
    return edge


def nearest_targets(
    depth: NDArray[np.floating] | NDArray[np.uint16], normal: NDArray[np.floating] | NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Depth and normals of one view, (H, W) and (H, W, 3), as `fastssl.shards.codec.quantised` makes them.

    Args:
        depth: metres, or millimetres in uint16.
        normal: unit vectors, or their codes in uint8.

    Returns:
        (size, size) millimetres and (size, size, 3) codes.

    Raises:
        ValueError: codes of normals that are none.
    """
    rows, columns = (_nearest_pixels(side, size) for side in depth.shape)
    millimetres, codes = np.empty((size, size), np.uint16), np.empty((size, size, 3), np.uint8)
    compiled(_take if depth.dtype == np.uint16 else _quantise_depth)(depth, rows, columns, millimetres)
    if normal.dtype != np.uint8:
        compiled(_quantise_normals)(normal, rows, columns, codes)
    elif compiled(_take_normals)(normal, rows, columns, codes):
        raise ValueError("a code that is 0 in some coordinates and not in others")
    return millimetres, codes


@lru_cache(maxsize=64)
def _nearest_pixels(side: int, size: int) -> NDArray[np.uint64]:
    return ((np.arange(size) + 0.5) * side / size).astype(np.uint64)


class _Weights(NamedTuple):
    """The input rows that each output row is made of; N output rows, some more than asked for to fill the last tile."""

    rows: NDArray[np.uint64]
    """(N, K) input rows of each, an even number."""
    values: NDArray[np.int32]
    """(N, K) weights in multiples of 2^-15, 0 of rows that do not count."""


@lru_cache(maxsize=64)
def _weights(rows: int, size: int) -> _Weights:
    scale = rows / size
    spread = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.ceil(centre - _LOBES * spread - 0.5).astype(np.int64).clip(0)
    stop = np.ceil(centre + _LOBES * spread - 0.5).astype(np.int64).clip(max=rows)
    most = int((stop - first).max())
    row = first[:, None] + np.arange(most + most % 2)
    distance = (row + 0.5 - centre[:, None]) / spread
    weight = np.where(row < stop[:, None], np.sinc(distance) * np.sinc(distance / _LOBES), 0)
    weight *= 2**_WEIGHT_BITS / weight.sum(axis=1, keepdims=True)
    more = ((0, -size % int(_TILE)), (0, 0))
    return _Weights(
        np.pad(row.clip(max=rows - 1).astype(np.uint64), more), np.pad(np.rint(weight).astype(np.int32), more)
    )


def _rows(image: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(image).reshape(len(image), -1)


def _filter_rows(rows: Any, taken: Any, weights: Any, shift: int, out: Any) -> None:
    """Columns of `out`, (W, N, 3): sums of N times a few rows (3 W) by their weights, without their lowest bits.

    Two rows are added at a time, because the sum is read and written each time; and some columns are written side by
    side, because every pixel of a column lies in another line of the cache.
    """
    length, half = np.uint64(rows.shape[1]), np.int32(1 << (shift - 1))
    low, high = np.int32(np.iinfo(out.dtype).min), np.int32(np.iinfo(out.dtype).max)
    total, tile = np.empty(length, np.int32), np.empty((_TILE, length), out.dtype)
    for first in range(np.uint64(0), np.uint64(len(taken)), _TILE):
        for i in range(_TILE):
            total[:] = half
            for k in range(np.uint64(0), np.uint64(taken.shape[1]), np.uint64(2)):
                one, other = rows[taken[first + i, k]], rows[taken[first + i, k + np.uint64(1)]]
                weight, other_weight = weights[first + i, k], weights[first + i, k + np.uint64(1)]
                for j in range(length):
                    total[j] += np.int32(one[j]) * weight + np.int32(other[j]) * other_weight
            row = tile[i]
            for j in range(length):
                row[j] = min(max(total[j] >> shift, low), high)
        for x in range(np.uint64(out.shape[0])):
            for i in range(_TILE):
                for axis in range(np.uint64(3)):
                    out[x, first + i, axis] = tile[i, np.uint64(3) * x + axis]


def _take(plane: Any, rows: Any, columns: Any, kept: Any) -> None:
    for i in range(np.uint64(len(rows))):
        stored = plane[rows[i]]
        for j in range(np.uint64(len(columns))):
            kept[i, j] = stored[columns[j]]


def _take_normals(normal: Any, rows: Any, columns: Any, codes: Any) -> Any:
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


def _quantise_depth(depth: Any, rows: Any, columns: Any, millimetres: Any) -> None:
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


def _quantise_normals(normal: Any, rows: Any, columns: Any, codes: Any) -> None:
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


def _mark_edge(instance: Any, edge: Any) -> None:
    size = np.uint64(len(instance))
    for i in range(size):
        # The last row has none below it, and the last pixel none to its right.
        here, below = instance[i], instance[min(i + np.uint64(1), size - np.uint64(1))]
        for j in range(size):
            edge[i, j] = here[j] != below[j]
        for j in range(size - np.uint64(1)):
            edge[i, j] |= here[j] != here[j + np.uint64(1)]
