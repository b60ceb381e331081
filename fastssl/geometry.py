"""Cameras, rays, normal frames and contours, in NumPy and in the units of `fastssl.batch`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics

# Depth that is stored in steps can tilt a line fitted to n pixels by 1.5 / n steps per pixel at most: one step in the
# middle of an otherwise constant row does.
_TILT_OF_STEPS = 1.5
# What the steps may add to either slope of a normal, in radians; both together stay below one degree.
_TOLERATED_TILT = np.radians(0.6)
# Root mean square of what a line through a flat surface may leave over, in steps; rounding alone leaves 0.29.
_FLAT = 0.6
# The same in parts of the depth, where the steps are finer: beyond it the surface has no slope worth the name.
_ROUGH = 0.01
# Root mean square of what rounding to whole steps does to a depth, in steps.
_ROUNDING = 1 / np.sqrt(12)
# Root mean square of a slope's error by the steps, in radians, beyond which it says nothing.
_UNSURE = np.radians(2)
# A bend between neighbouring pixels, in steps per pixel; rounding alone makes 4 at most.
_SHARP = 5.0
# The sum of squared distances from the middle of a line of three pixels.
_LEAST_WEIGHT = 2.0
# Pixels that are fitted at once: few enough that all intermediate arrays stay in the cache (a third of the time).
_BAND = 8192


def resized_camera(camera: Intrinsics, scale_x: float, scale_y: float) -> Intrinsics:
    """The camera of an image that was stretched by `scale_x` horizontally and `scale_y` vertically."""
    return Intrinsics(
        fx=camera.fx * scale_x,
        fy=camera.fy * scale_y,
        cx=camera.cx * scale_x,
        cy=camera.cy * scale_y,
    )


def pixel_rays(camera: Intrinsics, height: int, width: int) -> NDArray[np.float64]:
    """Viewing rays through the pixels' centres: (height, width, 3), with z = 1.

    A ray times the planar depth of its pixel is the point seen there, in metres.
    """
    rays = np.ones((height, width, 3))
    x, y = _ray_slopes(camera, height, width)
    rays[..., 0] = x
    rays[..., 1] = y[:, None]
    return rays


def _ray_slopes(camera: Intrinsics, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    columns, rows = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    return (columns + 0.5 - camera.cx) / camera.fx, (rows + 0.5 - camera.cy) / camera.fy


def edge_of(instance: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Contours of objects: (H, W), true where the identity differs from the right or lower neighbour's.

    Identities that differ by one are as different as any others, which an edge detector run on the raw
    numbers would miss.
    """
    edge = np.zeros(instance.shape, dtype=bool)
    edge[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    edge[:-1, :] |= instance[:-1, :] != instance[1:, :]
    return edge


def depth_from_ray_length(ray_length: NDArray[np.floating], camera: Intrinsics) -> NDArray[np.float32]:
    """Planar depth from the distance to the camera's centre, both (H, W) in metres.

    Where the distance is not known (0, negative, infinite or not a number), the depth is 0.
    """
    known = np.isfinite(ray_length) & (ray_length > 0)
    x, y = _ray_slopes(camera, *ray_length.shape)
    stretch = np.sqrt(x * x + (y * y)[:, None] + 1)
    depth = np.zeros(ray_length.shape)
    np.divide(ray_length, stretch, out=depth, where=known)
    return depth.astype(np.float32)


def normals_from_depth(
    depth: NDArray[np.floating],
    camera: Intrinsics,
    instance: NDArray[np.integer] | None = None,
    *,
    step: float | NDArray[np.floating] = 0.001,
) -> NDArray[np.float32]:
    """Surface normals of a depth map: (H, W, 3) unit vectors that face the camera, zero vector = not known.

    The inverse depth of a plane is linear in the pixel's coordinates; its two slopes and its value are the normal.
    Lines are fitted to it by least squares, along the pixel's row and along its column, over pixels of the same
    surface. How many follows from the depth's steps: 14 cm of a frontal surface for whole millimetres, 5 pixels at
    least; half as many, and half again, where the surface is not flat over so long a line. Where the surface ends too
    soon for that, the row's slope is averaged along the column, and the column's along the row.

    A plane whose depth is exact gives exact normals. In whole millimetres (or steps of `step`) a plane is within 1
    degree, at any distance and slope, where row and column of the pixel cross 14 cm (140 steps) of it, as measured in a
    frontal plane through the pixel; the shorter a crossing is, the larger its error can be, up to 5 degrees at 3 cm.

    Args:
        depth: (H, W) planar depth in metres; 0, negative, infinite and NaN = not known.
        instance: (H, W) identities. A line stays in one of them. It also ends where the depth jumps or has a crease,
            but a crease that is less sharp than the steps hide is seen by a change of identity alone.
        step: metres between neighbouring values of the stored depth, or (H, W) of them where they grow with it.
            Surfaces count as flat to this precision.

    Returns:
        Zero vectors where the depth is not known, where a surface shows too few pixels along rows or along columns
        (three in one, or more in several neighbouring ones, are enough for fine steps; coarse ones need as many as keep
        the root mean square of a slope's error below 2 degrees), and where it is too rough for a slope.
    """
    inverse = np.zeros(depth.shape)  # of what is not known: 0, as that of infinity is
    np.divide(1.0, depth, out=inverse, where=depth > 0)
    instance = np.zeros(depth.shape, np.uint8) if instance is None else instance
    step = np.broadcast_to(step, depth.shape)
    rows = _line_fits(inverse, instance, step, camera.fx)
    columns = _line_fits(
        np.ascontiguousarray(inverse.T), np.ascontiguousarray(instance.T), np.ascontiguousarray(step.T), camera.fy
    )
    unsure = step * inverse * (_ROUNDING / np.tan(_UNSURE))
    a = _pooled_slopes(rows, columns, (camera.fx * unsure) ** 2)
    b = _pooled_slopes(columns, rows, (camera.fy * unsure.T) ** 2).T
    x, y = _ray_slopes(camera, *depth.shape)
    normal = np.empty((*depth.shape, 3), np.float32)
    for band in _bands(*depth.shape):
        normal[band] = _facing(camera.fx * a[band], camera.fy * b[band], inverse[band], x, y[band, None])
    return normal


def _facing(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    inverse: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Unit normals of the planes a x + b y + c = inverse depth; zero vectors where a or b is NaN."""
    # Against the ray (x, y, 1) the plane's coefficients give the inverse depth, so their opposite faces the camera.
    normal = np.stack([a, b, inverse - a * x - b * y], axis=2)
    normal /= -np.sqrt(np.einsum("hwc,hwc->hw", normal, normal))[..., None]
    normal[np.isnan(normal[..., 2])] = 0
    return normal


class _Lines(NamedTuple):
    """Lines along the last axis, one for each pixel; all (H, W)."""

    slope: NDArray[Any]
    """Inverse depth per pixel."""
    weight: NDArray[Any]
    """See `_weight`; 0 = no slope."""
    first: NDArray[Any]
    stop: NDArray[Any]
    """The line's pixels."""
    short: NDArray[Any]
    """It has fewer pixels than the steps of the depth ask for."""


_LINE_DTYPES = (np.float32, np.float32, np.int32, np.int32, np.bool_)


def _bands(height: int, width: int) -> list[slice]:
    rows = max(1, _BAND // width)
    return [slice(row, row + rows) for row in range(0, height, rows)]


def _line_fits(
    inverse: NDArray[np.float64], instance: NDArray[np.integer], step: NDArray[np.floating], focal: float
) -> _Lines:
    lines = _Lines(*(np.zeros(inverse.shape, dtype) for dtype in _LINE_DTYPES))
    for band in _bands(*inverse.shape):
        _fit_band(inverse[band], instance[band], step[band], focal, _Lines(*(plane[band] for plane in lines)))
    return lines


def _fit_band(
    inverse: NDArray[np.float64],
    instance: NDArray[np.integer],
    step: NDArray[np.floating],
    focal: float,
    lines: _Lines,
) -> None:
    """Fill `lines`: for each pixel the longest one, up to the wanted length, along which the surface is flat."""
    width = inverse.shape[1]
    sums = _RunningSums(inverse)
    begin, end = (bound.ravel() for bound in _runs(inverse, instance, step, focal))
    pixel = np.flatnonzero(inverse)
    step = step.take(pixel)
    wanted = np.ceil((_TILT_OF_STEPS / _TOLERATED_TILT * focal / 2) * step * inverse.take(pixel))
    wanted = radius = wanted.clip(2, width).astype(np.intp)
    while pixel.size:
        first, stop = _placed(pixel % width, radius, begin.take(pixel), end.take(pixel))
        slope, mean, rest = sums.fit(pixel // width, first, stop)
        weight = _weight(stop - first)
        flat = (_FLAT * step * mean * mean) ** 2
        weight[rest > np.maximum(flat, (_ROUGH * mean) ** 2)] = 0
        done = (rest <= flat) | (radius == 1)
        short = weight < _weight(2 * wanted + 1)
        for plane, values in zip(lines, (slope, weight, first, stop, short), strict=True):
            plane.put(pixel[done], values[done])
        pixel, radius, wanted, step = pixel[~done], radius[~done] // 2, wanted[~done], step[~done]


def _weight(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of the squared distances of so many pixels from their middle: what a slope's variance is inverse to."""
    count = pixels.astype(np.float64)
    return count * (count * count - 1) / 12


def _placed(
    column: NDArray[np.intp], radius: NDArray[np.intp], begin: NDArray[np.intp], end: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Lines about these columns: moved, and where that does not help shortened, to lie in begin..end."""
    stop = np.minimum(np.maximum(column + radius, begin + 2 * radius) + 1, end)
    first = np.maximum(np.minimum(column - radius, stop - 1 - 2 * radius), begin)
    return first, stop


class _RunningSums:
    """Sums over any stretch of a row in constant time."""

    def __init__(self, inverse: NDArray[np.float64]) -> None:
        height, width = inverse.shape
        self._pitch = width + 1
        weighted = inverse * np.arange(width)
        sums = np.zeros((3, height, self._pitch))
        for plane, terms in zip(sums, (inverse, weighted, inverse * inverse), strict=True):
            np.cumsum(terms, axis=1, out=plane[:, 1:])
        self._sums = sums.reshape(3, -1)

    def fit(
        self, row: NDArray[np.intp], first: NDArray[np.intp], stop: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Slope, mean, and mean square of what is left over, of the lines through the pixels first..stop of rows."""
        low, high = row * self._pitch + first, row * self._pitch + stop
        total, weighted, square = (plane.take(high) - plane.take(low) for plane in self._sums)
        count = stop - first
        mean = total / count
        moment = weighted - (first + stop - 1) / 2 * total
        slope = moment / np.maximum(_weight(count), 0.5)
        return slope, mean, (square - mean * total - slope * moment) / count


def _runs(
    inverse: NDArray[np.float64], instance: NDArray[np.integer], step: NDArray[np.floating], focal: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Begin and end of the smooth piece of one surface in each pixel's row: (H, W) each."""
    height, width = inverse.shape
    linked = (inverse[:, :-1] > 0) & (inverse[:, 1:] > 0) & (instance[:, :-1] == instance[:, 1:])
    bend = np.zeros(inverse.shape)
    np.abs(np.diff(inverse, n=2, axis=1), out=bend[:, 1:-1], where=linked[:, 1:] & linked[:, :-1])
    # A jump bends the line at both its pixels, so the sum is largest between them; a crease does so at one or two.
    sharp = bend[:, 1:] + bend[:, :-1]
    near = np.maximum(inverse[:, 1:], inverse[:, :-1])
    # One pixel is as wide as depth / focal: a bend of that much is a crease of 45 degrees in a frontal face.
    finer = np.minimum(step[:, 1:], step[:, :-1])
    broken = sharp > np.maximum(_SHARP * finer * near, 1 / focal) * near
    broken[:, 1:] &= sharp[:, 1:] >= sharp[:, :-1]
    broken[:, :-1] &= sharp[:, :-1] > sharp[:, 1:]
    linked &= ~broken
    begin, end = np.zeros((height, width), np.intp), np.full((height, width), width)
    begin[:, 1:] = np.where(linked, 0, np.arange(1, width))
    end[:, :-1] = np.where(linked, width, np.arange(1, width))
    return np.maximum.accumulate(begin, axis=1), np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]


def _pooled_slopes(lines: _Lines, across: _Lines, sure: NDArray[np.floating]) -> NDArray[np.float64]:
    """Slopes of lines; those of less than the wanted weight averaged along the lines across; NaN = not known.

    Args:
        across: of the transposed image.
        sure: (H, W) weight below which a slope is not known.
    """
    slope = np.where(lines.weight < _LEAST_WEIGHT, np.nan, lines.slope.astype(np.float64))
    pixel = np.flatnonzero(lines.short)
    row, column = np.divmod(pixel, slope.shape[1])
    sums = np.zeros((2, slope.shape[1], slope.shape[0] + 1))
    np.cumsum(lines.weight.T, axis=1, out=sums[0, :, 1:])
    np.cumsum((lines.weight * lines.slope).T, axis=1, out=sums[1, :, 1:])
    turned = column * slope.shape[0] + row
    first, stop = across.first.take(turned), across.stop.take(turned)
    # The pixel at the end of a line may lie on a crease, and its own line on the other side.
    longer = stop - first > 5
    low, high = (column * sums.shape[2] + bound for bound in (first + longer, stop - longer))
    weight, moment = (plane.take(high) - plane.take(low) for plane in sums)
    least = np.maximum(sure.take(pixel), _LEAST_WEIGHT)
    slope.put(pixel, np.where(weight < least, np.nan, moment / np.maximum(weight, least)))
    return slope
