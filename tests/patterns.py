"""Coded test patterns: every stored pixel's planes tell where the pixel was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record

SIDE = 128
"""Of the stored patterns, in pixels."""


def coded_normals(side: int = SIDE) -> NDArray[np.float32]:
    """Unit vectors towards the camera that turn steadily across the image: (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / (side - 1) * 1.6 - 0.8
    normal = np.stack([x, y, -np.ones_like(x)], axis=-1)
    return (normal / np.linalg.norm(normal, axis=-1, keepdims=True)).astype(np.float32)


def coded_instances(number: int, side: int = SIDE) -> NDArray[np.int32]:
    """Blocks of seven pixels; neighbours differ by one, which an edge detector would miss."""
    y, x = np.mgrid[:side, :side]
    return ((x + number) // 7 + 1000 * (y // 7)).astype(np.int32)


def coded_record(number: int, side: int = SIDE) -> Record:
    """Depth is the pixel's number in millimetres plus one, so it names the pixel; red is x, green is y."""
    y, x = np.mgrid[:side, :side]
    image = np.stack([x * 255 // (side - 1), y * 255 // (side - 1), np.full_like(x, 20 * number)], axis=-1)
    depth = (1 + y * side + x) / np.float32(1000)
    depth[:4, :4] = 0
    normal = coded_normals(side)
    normal[-5:, -5:] = 0
    return Record(
        key=f"coded_{number:03d}",
        image=image.astype(np.uint8),
        depth=depth.astype(np.float32),
        normal=normal,
        instance=coded_instances(number, side),
        camera=Intrinsics(fx=100.0, fy=100.0, cx=side / 2, cy=side / 2),
    )


@dataclass(frozen=True)
class CodedSource:
    """`count` patterns, as a `Source`; the photos are the synthetic images without their targets."""

    count: int
    domain: Literal["synthetic", "real"]
    layout: str = "coded"
    path: Path = Path("coded")
    licence: str = "CC0-1.0"
    subset: str | None = None

    @property
    def labelled(self) -> bool:
        return self.domain == "synthetic"

    def references(self) -> Iterator[str]:
        return (str(number) for number in range(self.count))

    def key(self, reference: str) -> str:
        return f"coded_{int(reference):03d}"

    def read(self, reference: str) -> Record:
        record = coded_record(int(reference))
        if self.domain == "synthetic":
            return record
        return Record(key=record.key, image=record.image, class_index=int(reference) // 2)
