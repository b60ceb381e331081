"""A room whose depth and normals are known in closed form, as a source to pack.

A module of its own, because worker processes import the source by its name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.shards import DomainName


def room(seed: int, height: int, width: int) -> Record:
    """Looking down a corridor: floor, ceiling and two walls about the optical axis, and an end wall."""
    rng = np.random.default_rng(seed)
    fx, fy = rng.uniform(0.6, 0.9) * width, rng.uniform(0.6, 0.9) * height
    camera = Intrinsics(fx=fx, fy=fy, cx=width / 2, cy=height / 2)
    x = (np.arange(width) + 0.5 - camera.cx)[None, :] / fx * np.ones((height, 1))
    y = (np.arange(height) + 0.5 - camera.cy)[:, None] / fy * np.ones((1, width))
    # Each face n . p = -distance is met at z = -distance / (n . ray), by rays that run against n.
    faces = np.array([(0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, -1)], np.float64)
    distances = rng.uniform((0.8, 0.8, 0.8, 0.8, 4), (1.6, 1.6, 1.6, 1.6, 6))
    slope = -(faces[:, 0, None, None] * x + faces[:, 1, None, None] * y + faces[:, 2, None, None])
    with np.errstate(divide="ignore"):
        z = np.where(slope > 0, distances[:, None, None] / slope, np.inf)
    face = z.argmin(axis=0)
    depth, normal = z.min(axis=0).astype(np.float32), faces[face].astype(np.float32)
    # A window: nothing is known behind it, but it is an object.
    rows, columns = slice(height // 8, height // 4), slice(width // 8, width // 4)
    depth[rows, columns], normal[rows, columns], face[rows, columns] = 0, 0, 300
    tilt, phase = rng.uniform(1, 3, (2, 3)), rng.uniform(0, 6, 3)
    image = np.cos(x[..., None] * tilt[0] + y[..., None] * tilt[1] + phase) * 100 + 128
    return Record(
        key=f"room_{seed:03d}",
        image=image.astype(np.uint8),
        depth=depth,
        normal=normal,
        instance=face.astype(np.int32),
        camera=camera,
        class_index=seed % 3,
    )


class RoomSource:
    """Rooms 0 to `count` - 1. `trouble` names what happens at room `at` instead."""

    layout = "rooms"
    domain: DomainName = "synthetic"
    labelled = True
    licence = "CC0-1.0"
    subset = None

    def __init__(
        self, path: Path, count: int, height: int = 24, width: int = 40, trouble: str | None = None, at: int = 0
    ) -> None:
        self.path, self.count, self.height, self.width, self.trouble, self.at = path, count, height, width, trouble, at

    def references(self) -> Iterator[str]:
        return map(str, range(self.count))

    def key(self, reference: str) -> str:
        return f"room_{int(reference):03d}"

    def read(self, reference: str) -> Record:
        if int(reference) == self.at:
            if self.trouble == "bug":
                raise RuntimeError("the source has a bug")
            if self.trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "bad":
                raise DataError("a room cannot be read", where=self.path / reference, seen="no floor")
        return room(int(reference), self.height, self.width)
