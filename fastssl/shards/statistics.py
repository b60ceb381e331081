"""Statistics of all samples together, as a manifest has them: sizes, values and cameras, added up shard by shard.

Everything is kept as whole sums and extremes, so that the result does not depend on who added what first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fastssl.compiled import compiled

Count = Annotated[int, Field(ge=0)]
Focal = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A part of a manifest or of a packing's record: strict, so that a damaged file is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class Camera(Part):
    """Pinhole intrinsics in pixels of the packed image; a pixel's centre lies at its index plus one half."""

    fx: Focal
    fy: Focal
    cx: float
    cy: float


class CameraRange(Part):
    """Smallest and largest intrinsics, each number by itself."""

    min: Camera
    max: Camera

    def merged(self, *others: CameraRange) -> CameraRange:
        ranges = (self, *others)
        return CameraRange(min=_each(min, [one.min for one in ranges]), max=_each(max, [one.max for one in ranges]))


def _each(choose: Callable[[Iterable[float]], float], cameras: Sequence[Camera]) -> Camera:
    return Camera(
        fx=choose(camera.fx for camera in cameras),
        fy=choose(camera.fy for camera in cameras),
        cx=choose(camera.cx for camera in cameras),
        cy=choose(camera.cy for camera in cameras),
    )


class MemberBytes(Part):
    """Sizes of one member of the samples that have it, in bytes."""

    count: Count
    total: Count
    min: Count
    max: Count

    def merged(self, *others: MemberBytes) -> MemberBytes:
        sizes = (self, *others)
        return MemberBytes(
            count=sum(size.count for size in sizes),
            total=sum(size.total for size in sizes),
            min=min(size.min for size in sizes),
            max=max(size.max for size in sizes),
        )


class PlaneValues(Part):
    """Values of one plane over the pixels that have one."""

    unit: Literal["gray level", "mm", "pixel"]
    """Unit of the values: colours 0 to 255; depth; of normals and contours each pixel that has one counts 1."""
    pixels: Count
    """Number of pixels, known or not."""
    known: Count
    total: list[int]
    """Sum of the values, per channel."""
    squares: list[int]
    """Sum of their squares, per channel."""
    min: int | None = None
    max: int | None = None

    def merged(self, *others: PlaneValues) -> PlaneValues:
        planes = (self, *others)
        return PlaneValues(
            unit=self.unit,
            pixels=sum(plane.pixels for plane in planes),
            known=sum(plane.known for plane in planes),
            total=[sum(values) for values in zip(*(plane.total for plane in planes), strict=True)],
            squares=[sum(values) for values in zip(*(plane.squares for plane in planes), strict=True)],
            min=min((plane.min for plane in planes if plane.min is not None), default=None),
            max=max((plane.max for plane in planes if plane.max is not None), default=None),
        )


_Values = TypeVar("_Values", MemberBytes, PlaneValues)


class Statistics(Part):
    """Statistics of a sample, a shard, or a dataset."""

    member_bytes: dict[str, MemberBytes] = {}
    planes: dict[str, PlaneValues] = {}
    camera: CameraRange | None = None
    classes: Count = 0
    """Largest class number plus one; 0 = no sample has a class."""

    def merged(self, *others: Statistics) -> Statistics:
        """The sum with all of these, which is faster at once than one after the other."""
        parts = (self, *others)
        cameras = [part.camera for part in parts if part.camera is not None]
        return Statistics(
            member_bytes=_merged([part.member_bytes for part in parts]),
            planes=_merged([part.planes for part in parts]),
            camera=cameras[0].merged(*cameras[1:]) if cameras else None,
            classes=max(part.classes for part in parts),
        )


def member_bytes(content: bytes) -> MemberBytes:
    """Size of one member of one sample."""
    size = len(content)
    return MemberBytes(count=1, total=size, min=size, max=size)


def image_values(image: NDArray[np.uint8]) -> PlaneValues:
    """Values of (H, W, 3) RGB of at most 65535 rows, which no JPEG exceeds."""
    height, width, _ = image.shape
    sums = np.zeros((2, 3), np.uint64)
    low, high = compiled(_add_rows)(np.ascontiguousarray(image).reshape(height, -1), sums)
    total, squares = sums.tolist()
    return PlaneValues(
        unit="gray level",
        pixels=height * width,
        known=height * width,
        total=total,
        squares=squares,
        min=int(low),
        max=int(high),
    )


def _add_rows(rows: Any, sums: Any) -> Any:
    """Add rows of bytes, (H, W * 3), and their squares to (2, 3) sums; smallest and largest byte."""
    total, squares = np.zeros(rows.shape[1], np.uint32), np.zeros(rows.shape[1], np.uint32)
    low, high = np.uint8(255), np.uint8(0)
    for i in range(np.uint64(rows.shape[0])):
        row = rows[i]
        for j in range(np.uint64(rows.shape[1])):
            value = np.uint32(row[j])
            total[j] += value
            squares[j] += value * value
        for j in range(np.uint64(rows.shape[1])):
            low, high = min(low, row[j]), max(high, row[j])
    for j in range(np.uint64(rows.shape[1])):
        channel = j % np.uint64(3)
        sums[0, channel] += np.uint64(total[j])
        sums[1, channel] += np.uint64(squares[j])
    return low, high


def depth_values(millimetres: NDArray[np.uint16]) -> PlaneValues:
    """Values of (H, W) millimetres, 0 = not known, of rows of at most 65535 pixels."""
    known, total, squares, low, high = map(int, compiled(_depth_sums)(millimetres))
    return PlaneValues(
        unit="mm",
        pixels=millimetres.size,
        known=known,
        total=[total],
        squares=[squares],
        min=low + 1 if known else None,
        max=high if known else None,
    )


def _depth_sums(millimetres: Any) -> Any:
    """The number of known pixels, their sum, the sum of their squares, the smallest less one, and the largest."""
    known, total, squares = np.uint64(0), np.uint64(0), np.uint64(0)
    low, high = np.uint16(65535), np.uint16(0)
    for i in range(np.uint64(millimetres.shape[0])):
        row = millimetres[i]
        # 32 bits hold the sum of a row of 65535 pixels, and add up twice as fast as 64.
        known_of_row, total_of_row = np.uint32(0), np.uint32(0)
        for j in range(np.uint64(len(row))):
            total_of_row += np.uint32(row[j])
            known_of_row += np.uint32(1) if row[j] > 0 else np.uint32(0)
        for j in range(np.uint64(len(row))):
            squares += np.uint64(row[j]) * np.uint64(row[j])
        for j in range(np.uint64(len(row))):
            # One less makes 0, which is not known, the largest number of 16 bits.
            value, less = row[j], np.uint16(row[j] - np.uint16(1))
            low, high = less if less < low else low, value if value > high else high
        known, total = known + known_of_row, total + total_of_row
    return known, total, squares, low, high


def normal_values(codes: NDArray[np.uint8]) -> PlaneValues:
    """Number of known normals, (H, W, 3) codes: 1 or more in all coordinates of a known one, 0 in those of others."""
    return _marked(int(np.count_nonzero(codes)) // 3, codes[..., 0].size)


def mask_values(mask: NDArray[np.bool_]) -> PlaneValues:
    """Number of marked pixels, (H, W)."""
    return _marked(int(np.count_nonzero(mask)), mask.size)


def _marked(marked: int, pixels: int) -> PlaneValues:
    return PlaneValues(unit="pixel", pixels=pixels, known=marked, total=[marked], squares=[marked])


def _merged(parts: Sequence[dict[str, _Values]]) -> dict[str, _Values]:
    found: dict[str, list[_Values]] = {}
    for part in parts:
        for name, values in part.items():
            found.setdefault(name, []).append(values)
    return {name: values[0].merged(*values[1:]) for name, values in found.items()}
