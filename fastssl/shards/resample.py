"""Images and planes stretched to squares, on one core.

Images by a Lanczos filter in whole numbers. It is Pillow's (three lobes, as wide as the coarser of the two grids), at
five times the speed: output rows are weighted sums of whole input rows, written as columns, so that a second pass makes
the columns and turns the image back. Between the two passes values keep 6 bits behind the point and are not cut off at
black and white, so the result is within one level of the exact filter, and whole numbers make it the same everywhere.

Planes by the nearest pixel. Depth and normals become in the same pass what a shard holds; only pixels that are
kept are converted, which is four times as fast as doing one after the other in NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LOBES = 3
_WEIGHT_BITS, _VALUE_BITS = 15, 6
"""Bits behind the point, of weights and of values between the passes. Their sums stay below 2^31, because the absolute
weights of a pixel add up to less than 1.6."""


def stretched(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An (H, W, 3) image as (size, size, 3); the image itself if that is its size."""
    height, width, _ = image.shape
    if height == width == size:
        return image
    from fastssl.shards.resample_kernel import filter_rows  # loads numba, for which only those who pack should wait

    by_rows, by_columns = _weights(height, size), _weights(width, size)
    padded = len(by_rows.values)
    between, out = np.empty((width, padded, 3), np.int16), np.empty((padded, padded, 3), np.uint8)
    filter_rows(_rows(image), *by_rows, _WEIGHT_BITS - _VALUE_BITS, (0,) * 6, between)
    filter_rows(_rows(between), *by_columns, _WEIGHT_BITS + _VALUE_BITS, (0,) * 3, out)
    return out[:size, :size]


def nearest_edge(instance: NDArray[np.integer], size: int) -> NDArray[np.bool_]:
    """`fastssl.geometry.edge_of` of an (H, W) plane that was stretched to (size, size)."""
    from fastssl.shards.resample_kernel import mark_edge, take

    rows, columns = (_nearest_pixels(side, size) for side in instance.shape)
    kept, edge = np.empty((size, size), instance.dtype), np.empty((size, size), np.bool_)
    take(instance, rows, columns, kept)
    mark_edge(kept, edge)
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
    from fastssl.shards.resample_kernel import quantise_depth, quantise_normals, take, take_normals

    rows, columns = (_nearest_pixels(side, size) for side in depth.shape)
    millimetres, codes = np.empty((size, size), np.uint16), np.empty((size, size, 3), np.uint8)
    (take if depth.dtype == np.uint16 else quantise_depth)(depth, rows, columns, millimetres)
    if normal.dtype != np.uint8:
        quantise_normals(normal, rows, columns, codes)
    elif take_normals(normal, rows, columns, codes):
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
    from fastssl.tile import TILE

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
    more = ((0, -size % TILE), (0, 0))
    return _Weights(
        np.pad(row.clip(max=rows - 1).astype(np.uint64), more), np.pad(np.rint(weight).astype(np.int32), more)
    )


def _rows(image: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(image).reshape(len(image), -1)
