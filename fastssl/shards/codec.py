"""The label block: depth, normals and contours of one sample in one LZ4 block.

A block is a raw LZ4 block (no frame, no size prefix), which is what DALI's `fn.decoders.inflate` reads on a GPU.
Inflated it has a fixed number of bytes, known from the image size alone:

    depth    (H, W)            uint16, little-endian   millimetres; 0 = not known
    normal   (3, H, W)         uint8                   round(127.5 (n + 1)) in 1..255; (0, 0, 0) = not known
    edge     (H, ceil(W / 8))  uint8                   bits, the leftmost pixel in the highest bit

In depth and normal every row but the first holds the difference to the row above, modulo 2^16 and 2^8, so that
decoding is adding rows. Differences between rows are 2 % smaller than differences within a row and undone 3.4 times
as fast in NumPy; one block for all planes is as small as one for each (benchmarks/LOG.md has the figures).

Error budget: depth 0.5 mm; normals 0.39 degrees at most, 0.17 on average; contours exact. Depth that whole millimetres
in 16 bits cannot hold (below 0.5 mm, beyond 65.535 m, not finite) is stored as not known, for a clamped depth would be
a wrong one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from fastssl.errors import ShardError

LZ4_LEVEL = 6
"""A quarter of level 9's time to pack, for 15 % more label bytes."""

_ROWS = 16


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one plane lies in the inflated bytes."""

    name: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, inflated: NDArray[np.uint8]) -> NDArray[Any]:
        """This plane of inflated bytes (..., num_bytes), as (..., *shape), without a copy."""
        return inflated[..., self.start : self.stop].view(self.dtype).reshape(*inflated.shape[:-1], *self.shape)


@dataclass(frozen=True)
class LabelLayout:
    """The inflated label block of an image of this size."""

    height: int
    width: int

    @cached_property
    def depth(self) -> Plane:
        return Plane("depth", 0, (self.height, self.width), np.dtype("<u2"))

    @cached_property
    def normal(self) -> Plane:
        return Plane("normal", self.depth.stop, (3, self.height, self.width), np.dtype("u1"))

    @cached_property
    def edge(self) -> Plane:
        return Plane("edge", self.normal.stop, (self.height, -(-self.width // 8)), np.dtype("u1"))

    @cached_property
    def num_bytes(self) -> int:
        return self.edge.stop


def encode_labels(depth: NDArray[np.floating], normal: NDArray[np.floating], edge: NDArray[np.bool_]) -> bytes:
    """Compress the label planes of one sample.

    Args:
        depth: (H, W) metres, 0 = not known.
        normal: (H, W, 3) unit vectors, zero vector = not known.
        edge: (H, W) contours.
    """
    layout = LabelLayout(*depth.shape)
    inflated = np.empty(layout.num_bytes, np.uint8)
    layout.depth.view(inflated)[:] = _row_differences(_millimetres(depth))
    layout.normal.view(inflated)[:] = _row_differences(_normal_codes(normal))
    layout.edge.view(inflated)[:] = np.packbits(edge, axis=1)
    block: bytes = lz4.block.compress(inflated, mode="high_compression", compression=LZ4_LEVEL, store_size=False)
    return block


def decode_labels(
    block: bytes | NDArray[np.uint8], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Decompress the label planes of one sample.

    Returns:
        depth (H, W) in metres, 0 = not known; normal (H, W, 3) of unit length, zero vector = not known;
        edge (H, W); valid (H, W), where depth and normal are both known.

    Raises:
        ShardError: the block is damaged, or is not of an image of this size.
    """
    layout = LabelLayout(height, width)
    inflated = np.empty(layout.num_bytes, np.uint8)
    inflate(block, layout, inflated)
    millimetres, codes = layout.depth.view(inflated), layout.normal.view(inflated)
    undo_differences(millimetres)
    undo_differences(codes)
    depth = millimetres.astype(np.float32) / np.float32(1000)
    normal = codes.transpose(1, 2, 0).astype(np.float32) / np.float32(127.5) - np.float32(1)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    known = codes.any(axis=0)
    normal[~known] = 0
    edge = np.unpackbits(layout.edge.view(inflated), axis=1, count=width).astype(bool)
    return depth, normal, edge, known & (millimetres > 0)


def inflate(block: bytes | NDArray[np.uint8], layout: LabelLayout, out: NDArray[np.uint8]) -> None:
    """Inflate a block into `out`, (num_bytes,) uint8; its rows are still differences.

    The GIL is released while LZ4 works, so threads inflate in parallel.

    Raises:
        ShardError: the block is damaged, or is not of an image of this size.
    """
    try:
        inflated = lz4.block.decompress(block, uncompressed_size=layout.num_bytes)
    except lz4.block.LZ4BlockError as error:
        raise ShardError(
            "a label block is damaged", seen=str(error), expected=f"{layout.num_bytes} bytes when inflated"
        ) from error
    if len(inflated) != layout.num_bytes:
        raise ShardError(
            f"a label block does not fit an image of {layout.height} x {layout.width} pixels",
            seen=f"{len(inflated)} bytes when inflated",
            expected=f"{layout.num_bytes}",
        )
    out[:] = np.frombuffer(inflated, np.uint8)


def undo_differences(plane: NDArray[np.integer]) -> None:
    """Turn row differences back into values, in place: (..., H, W) becomes its running sum along H.

    `numpy.cumsum` walks down one column after the other. Whole rows are added here instead, first inside groups of 16
    rows (all groups at once), then each group's last row onto the next group: the same sum, three times as fast.
    """
    height, width = plane.shape[-2:]
    grouped = height - height % _ROWS
    groups = plane[..., :grouped, :].reshape(*plane.shape[:-2], grouped // _ROWS, _ROWS, width)
    for row in range(1, _ROWS):
        np.add(groups[..., row, :], groups[..., row - 1, :], out=groups[..., row, :])
    for group in range(1, grouped // _ROWS):
        np.add(groups[..., group, :, :], groups[..., group - 1, -1:, :], out=groups[..., group, :, :])
    for row in range(max(grouped, 1), height):
        np.add(plane[..., row, :], plane[..., row - 1, :], out=plane[..., row, :])


def _row_differences(plane: NDArray[Any]) -> NDArray[Any]:
    differences = plane.copy()
    differences[..., 1:, :] -= plane[..., :-1, :]
    return differences


def _millimetres(depth: NDArray[np.floating]) -> NDArray[np.uint16]:
    # Doubles: 60 m times 1000 has no room left for a half in a float.
    millimetres = np.rint(depth.astype(np.float64) * 1000)
    fits = (millimetres > 0) & (millimetres <= 65535)  # false for NaN
    return np.where(fits, millimetres, 0).astype(np.uint16)


def _normal_codes(normal: NDArray[np.floating]) -> NDArray[np.uint8]:
    known = np.isfinite(normal).all(axis=2) & normal.any(axis=2)
    codes = np.rint(127.5 * (np.where(known[..., None], normal, 0) + 1)).clip(1, 255).astype(np.uint8)
    codes[~known] = 0
    return np.ascontiguousarray(codes.transpose(2, 0, 1))
