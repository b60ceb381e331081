"""What a manifest says about all samples together: sizes, values and cameras, added up shard by shard.

Everything is kept as whole sums and extremes, so that the result does not depend on who added what first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fastssl.compiled import compiled

Count = Annotated[int, Field(ge=0)]
Focal = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """Of a manifest or of a packing's record: strict, so that a damaged file is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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

    def merged(self, other: CameraRange) -> CameraRange:
        return CameraRange(min=_each(min, self.min, other.min), max=_each(max, self.max, other.max))


def _each(choose: Callable[[float, float], float], one: Camera, other: Camera) -> Camera:
    return Camera(
        fx=choose(one.fx, other.fx),
        fy=choose(one.fy, other.fy),
        cx=choose(one.cx, other.cx),
        cy=choose(one.cy, other.cy),
    )


class MemberBytes(Part):
    """Sizes of one member of the samples that have it, in bytes."""

    count: Count
    total: Count
    min: Count
    max: Count

    def merged(self, other: MemberBytes) -> MemberBytes:
        return MemberBytes(
            count=self.count + other.count,
            total=self.total + other.total,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
        )


class PlaneValues(Part):
    """Values of one plane over the pixels that have one."""

    unit: Literal["gray level", "mm", "pixel"]
    """Colours 0 to 255; depth; for normals and contours each pixel that has one counts 1."""
    pixels: Count
    """All, known or not."""
    known: Count
    total: list[int]
    """Sum of the values, per channel."""
    squares: list[int]
    """Sum of their squares, per channel."""
    min: int | None = None
    max: int | None = None

    def merged(self, other: PlaneValues) -> PlaneValues:
        return PlaneValues(
            unit=self.unit,
            pixels=self.pixels + other.pixels,
            known=self.known + other.known,
            total=[a + b for a, b in zip(self.total, other.total, strict=True)],
            squares=[a + b for a, b in zip(self.squares, other.squares, strict=True)],
            min=min((value for value in (self.min, other.min) if value is not None), default=None),
            max=max((value for value in (self.max, other.max) if value is not None), default=None),
        )


_Values = TypeVar("_Values", MemberBytes, PlaneValues)


class Statistics(Part):
    """Of a sample, a shard, or a dataset."""

    member_bytes: dict[str, MemberBytes] = {}
    planes: dict[str, PlaneValues] = {}
    camera: CameraRange | None = None
    classes: Count = 0
    """Largest class number plus one; 0 = no sample has a class."""

    def merged(self, other: Statistics) -> Statistics:
        cameras = [camera for camera in (self.camera, other.camera) if camera is not None]
        return Statistics(
            member_bytes=_merged(self.member_bytes, other.member_bytes),
            planes=_merged(self.planes, other.planes),
            camera=cameras[0].merged(cameras[-1]) if cameras else None,
            classes=max(self.classes, other.classes),
        )


def member_bytes(content: bytes) -> MemberBytes:
    """Of one member of one sample."""
    size = len(content)
    return MemberBytes(count=1, total=size, min=size, max=size)


def image_values(image: NDArray[np.uint8]) -> PlaneValues:
    """Of (H, W, 3) RGB of at most 65535 rows, which no JPEG exceeds."""
    height, width, _ = image.shape
    total, squares = np.zeros(3 * width, np.uint32), np.zeros(3 * width, np.uint32)
    low, high = compiled(_add_rows)(np.ascontiguousarray(image).reshape(height, -1), total, squares)
    return PlaneValues(
        unit="gray level",
        pixels=height * width,
        known=height * width,
        total=_channel_sums(total),
        squares=_channel_sums(squares),
        min=int(low),
        max=int(high),
    )


def _add_rows(rows: Any, total: Any, squares: Any) -> Any:
    """Add rows of bytes and of their squares to (W * 3) sums; smallest and largest byte."""
    low, high = np.uint8(255), np.uint8(0)
    for i in range(np.uint64(rows.shape[0])):
        row = rows[i]
        for j in range(np.uint64(rows.shape[1])):
            value = np.uint32(row[j])
            total[j] += value
            squares[j] += value * value
        for j in range(np.uint64(rows.shape[1])):
            low, high = min(low, row[j]), max(high, row[j])
    return low, high


def _channel_sums(columns: NDArray[np.uint32]) -> list[int]:
    sums: list[int] = columns.reshape(-1, 3).sum(axis=0, dtype=np.uint64).tolist()
    return sums


def depth_values(millimetres: NDArray[np.uint16]) -> PlaneValues:
    """Of (H, W) millimetres, 0 = not known."""
    known, total, squares, low, high = map(int, compiled(_depth_sums)(np.ascontiguousarray(millimetres).reshape(-1)))
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
    """How many are known, their sum, the sum of their squares, the smallest less one, and the largest."""
    known, total, squares = np.uint64(0), np.uint64(0), np.uint64(0)
    low, high = np.uint16(65535), np.uint16(0)
    for value in millimetres:
        wide = np.uint64(value)
        known += np.uint64(1) if value > 0 else np.uint64(0)
        total += wide
        squares += wide * wide
    for value in millimetres:
        # One less makes 0, which is not known, the largest number of 16 bits.
        less = np.uint16(value - np.uint16(1))
        low, high = less if less < low else low, value if value > high else high
    return known, total, squares, low, high


def mask_values(mask: NDArray[np.bool_]) -> PlaneValues:
    """Of (H, W): how many pixels are marked."""
    marked = int(np.count_nonzero(mask))
    return PlaneValues(unit="pixel", pixels=mask.size, known=marked, total=[marked], squares=[marked])


def _merged(into: dict[str, _Values], new: dict[str, _Values]) -> dict[str, _Values]:
    return into | {name: into[name].merged(value) if name in into else value for name, value in new.items()}
