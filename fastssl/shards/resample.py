"""Images and label planes stretched to squares, compiled, on one core.

Images by a Lanczos filter in whole numbers. It is Pillow's (three lobes, as wide as the coarser of the two grids), at
three to five times the speed: output rows are weighted sums of whole input rows, and so are the columns, of the
transposed image. Between the two passes values keep 6 bits behind the point and are not cut off at black and white, so
the result is within one level of the exact filter, and whole numbers make it the same on every machine.

Label planes by the nearest pixel. Depth and normals become in the same pass what a shard holds; only pixels that are
kept are converted, which is four times as fast as doing one after the other in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LOBES = 3
_WEIGHT_BITS, _VALUE_BITS = 15, 6
"""Behind the point, of weights and of values between the passes. Their sums stay below 2^31, because the absolute
weights of a pixel add up to less than 1.6."""
_TILE = 16


def stretched(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An (H, W, 3) image as (size, size, 3); the image itself if that is its size."""
    height, width, _ = image.shape
    if height == width == size:
        return image
    between = np.empty((size, width, 3), np.int16)
    turned = np.empty((width, size, 3), np.int16)
    columns = np.empty((size, size, 3), np.uint8)
    out = np.empty((size, size, 3), np.uint8)
    filter_rows, swap = _compiled(_filter_rows), _compiled(_swap)
    filter_rows(_rows(image), *_weights(height, size), _WEIGHT_BITS - _VALUE_BITS, _rows(between))
    swap(between, turned)
    filter_rows(_rows(turned), *_weights(width, size), _WEIGHT_BITS + _VALUE_BITS, _rows(columns))
    swap(columns, out)
    return out


def nearest(plane: NDArray[Any], size: int) -> NDArray[Any]:
    """An (H, W) plane as (size, size)."""
    rows, columns = (_nearest_pixels(side, size) for side in plane.shape)
    seen: NDArray[Any] = plane.take(rows, axis=0).take(columns, axis=1)
    return seen


def nearest_labels(
    depth: NDArray[np.floating], normal: NDArray[np.floating], size: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Depth and normals of one view, (H, W) and (H, W, 3), as `fastssl.shards.codec.quantised` makes them.

    Returns:
        (size, size) millimetres and (size, size, 3) codes.
    """
    rows, columns = (_nearest_pixels(side, size) for side in depth.shape)
    millimetres, codes = np.empty((size, size), np.uint16), np.empty((size, size, 3), np.uint8)
    _compiled(_quantise)(depth, normal, rows, columns, millimetres, codes)
    return millimetres, codes


@lru_cache(maxsize=64)
def _nearest_pixels(side: int, size: int) -> NDArray[np.intp]:
    return ((np.arange(size) + 0.5) * side / size).astype(np.intp)


class _Weights(NamedTuple):
    """How each of N output rows is made of input rows."""

    first: NDArray[np.int64]
    """(N,) first input row of each."""
    number: NDArray[np.int64]
    """(N,) how many."""
    values: NDArray[np.int32]
    """(N, most of all) in multiples of 2^-15."""


@lru_cache(maxsize=64)
def _weights(rows: int, size: int) -> _Weights:
    scale = rows / size
    spread = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.ceil(centre - _LOBES * spread - 0.5).astype(np.int64).clip(0)
    stop = np.ceil(centre + _LOBES * spread - 0.5).astype(np.int64).clip(max=rows)
    row = first[:, None] + np.arange((stop - first).max())
    distance = (row + 0.5 - centre[:, None]) / spread
    weight = np.where(row < stop[:, None], np.sinc(distance) * np.sinc(distance / _LOBES), 0)
    weight *= 2**_WEIGHT_BITS / weight.sum(axis=1, keepdims=True)
    return _Weights(first, stop - first, np.rint(weight).astype(np.int32))


def _rows(image: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(image).reshape(len(image), -1)


@cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled at its first call on a machine, kept in a file from then on."""
    from numba import njit  # takes a second, for which only those who pack should wait

    compiled: Callable[..., None] = njit(nogil=True, cache=True)(function)
    return compiled


def _filter_rows(rows: Any, first: Any, number: Any, weights: Any, shift: int, out: Any) -> None:
    """Rows of `out`: sums of rows times weights, without their lowest bits, cut off where `out` cannot hold them."""
    width, half = rows.shape[1], 1 << (shift - 1)
    low, high = np.iinfo(out.dtype).min, np.iinfo(out.dtype).max
    total = np.empty(width, np.int32)
    for i in range(len(out)):
        total[:] = half
        for k in range(number[i]):
            row, weight = rows[first[i] + k], weights[i, k]
            for j in range(width):
                total[j] += np.int32(row[j]) * weight
        for j in range(width):
            out[i, j] = min(max(total[j] >> shift, low), high)


def _swap(image: Any, out: Any) -> None:
    """Rows for columns: (H, W, 3) into (W, H, 3)."""
    height, width, _ = image.shape
    for top in range(0, height, _TILE):  # in tiles, whose columns stay in the cache
        for x in range(width):
            for y in range(top, min(top + _TILE, height)):
                out[x, y, 0], out[x, y, 1], out[x, y, 2] = image[y, x, 0], image[y, x, 1], image[y, x, 2]


def _quantise(depth: Any, normal: Any, rows: Any, columns: Any, millimetres: Any, codes: Any) -> None:
    for i in range(len(rows)):
        for j in range(len(columns)):
            row, column = rows[i], columns[j]
            whole = np.rint(np.float64(depth[row, column]) * 1000)
            millimetres[i, j] = np.uint16(whole) if 0 < whole <= 65535 else 0  # false for NaN
            x, y, z = normal[row, column, 0], normal[row, column, 1], normal[row, column, 2]
            known = 0 < x * x + y * y + z * z < np.inf
            for axis in range(3):
                code = np.rint((normal[row, column, axis] + np.float32(1)) * np.float32(127.5))
                codes[i, j, axis] = np.uint8(min(max(code, 1), 255)) if known else 0
