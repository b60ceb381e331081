"""The target block: depth, normals and contours of one sample, one member of a shard.

Three planes of bytes, one behind the other; the number of bytes follows from the image's size alone:

    depth    (2, H, W)         low and high bytes of the depth in whole millimetres; 0 = not known
    normal   (H, W, 3)         round(127.5 (n + 1)) in 1..255; (0, 0, 0) = not known
    edge     (H, ceil(W / 8))  bits, the leftmost pixel in the highest bit; the bits behind the last pixel are 0

Codec `lz4`, the default: in depth and normal every row but the first holds the difference to the row above, modulo 256,
so that decoding is adding rows; the whole is one raw LZ4 block (no frame, no size prefix), which is what DALI's
`fn.decoders.inflate` reads on a GPU. Codec `raw`: the planes as they are, six to fourteen times as large.

benchmarks/LOG.md has the figures of these and of what was not taken: differences within rows, along both axes, depth in
words instead of bytes, planar and octahedral normals, JPEG 2000, TIFF.

Error budget: depth 0.5 mm; normals 0.39 degrees at most, 0.17 on average; contours exact. Depth that whole millimetres
in 16 bits cannot hold (below 0.5 mm, beyond 65.535 m, not finite) is stored as not known, for a clamped depth would be
a wrong one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import lz4.block
import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled
from fastssl.errors import ShardError

TargetCodec = Literal["lz4", "raw"]

LZ4_LEVEL = 0
"""LZ4's fast mode: targets take a fifth more bytes than at level 3, and level 3 as long as the rest of the encoding."""

_ROWS = 16


@dataclass(frozen=True, slots=True)
class Plane:
    """The place of one plane in a block of uint8."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def view(self, block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """This plane of blocks (..., num_bytes), as (..., *shape), without a copy."""
        return block[..., self.start : self.stop].reshape(*block.shape[:-1], *self.shape)


@dataclass(frozen=True)
class TargetLayout:
    """The layout of the target block of an image of this size, inflated."""

    height: int
    width: int

    @cached_property
    def depth(self) -> Plane:
        return Plane("depth", 0, (2, self.height, self.width))

    @cached_property
    def normal(self) -> Plane:
        return Plane("normal", self.depth.stop, (self.height, self.width, 3))

    @cached_property
    def edge(self) -> Plane:
        return Plane("edge", self.normal.stop, (self.height, -(-self.width // 8)))

    @cached_property
    def num_bytes(self) -> int:
        return self.edge.stop


@lru_cache(maxsize=64)
def target_layout(height: int, width: int) -> TargetLayout:
    """The layout for one size, whose planes are worked out once."""
    return TargetLayout(height, width)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTargets:
    """The planes of one sample in the whole numbers that a shard holds."""

    millimetres: NDArray[np.uint16]
    """(H, W), 0 = not known."""
    normal: NDArray[np.uint8]
    """(H, W, 3) codes in 1..255, (0, 0, 0) = not known."""
    edge: NDArray[np.bool_]
    """(H, W) contours."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(H, W) pixels whose normal is known."""
        known: NDArray[np.bool_] = (self.normal[..., 0] | self.normal[..., 1] | self.normal[..., 2]) != 0
        return known


def quantised(depth: NDArray[np.floating], normal: NDArray[np.floating], edge: NDArray[np.bool_]) -> StoredTargets:
    """Planes as a shard holds them.

    Args:
        depth: (H, W) metres, 0 = not known.
        normal: (H, W, 3) unit vectors, zero vector = not known.
        edge: (H, W) contours.
    """
    return StoredTargets(millimetres=_millimetres(depth), normal=_normal_codes(normal), edge=edge)


def pack_targets(planes: StoredTargets, codec: TargetCodec = "lz4", level: int = LZ4_LEVEL) -> bytes:
    """The target block of one sample, compressed; the arguments are those of `target_block` and `compressed`."""
    return compressed(target_block(planes, codec), codec, level)


def target_block(planes: StoredTargets, codec: TargetCodec = "lz4") -> NDArray[np.uint8]:
    """The bytes of a target block before they are compressed, (num_bytes,)."""
    layout = target_layout(*planes.millimetres.shape)
    block = np.empty(layout.num_bytes, np.uint8)
    low, high = layout.depth.view(block)
    codes, stored = planes.normal.reshape(layout.height, -1), layout.normal.view(block).reshape(layout.height, -1)
    compiled(_fill_rows)(planes.millimetres, codes, codec == "lz4", low, high, stored)
    layout.edge.view(block)[:] = np.packbits(planes.edge, axis=1)
    return block


def _fill_rows(millimetres: Any, codes: Any, differ: bool, low: Any, high: Any, stored: Any) -> None:
    """Bytes of depth and normals; from the second row on, where they are to differ, minus those of the row above."""
    for i in range(np.uint64(millimetres.shape[0])):
        above = i - np.uint64(1) if i > 0 else i
        part = np.uint16(0xFF) if differ and i > 0 else np.uint16(0)
        for j in range(np.uint64(millimetres.shape[1])):
            low[i, j] = millimetres[i, j] - (millimetres[above, j] & part)
        for j in range(np.uint64(millimetres.shape[1])):
            high[i, j] = (millimetres[i, j] >> 8) - ((millimetres[above, j] >> 8) & part)
        for j in range(np.uint64(codes.shape[1])):
            stored[i, j] = codes[i, j] - (codes[above, j] & part)


def compressed(block: NDArray[np.uint8], codec: TargetCodec = "lz4", level: int = LZ4_LEVEL) -> bytes:
    """A target block as a shard holds it; `inflate` is the inverse.

    Args:
        block: (num_bytes,).
        level: of LZ4; 0 = its fast mode, 1 to 12 = its high compression.
    """
    if codec == "raw":
        return block.tobytes()
    mode: dict[str, Any] = {"mode": "high_compression", "compression": level} if level else {"mode": "default"}
    member: bytes = lz4.block.compress(block, store_size=False, **mode)
    return member


def unpack_targets(
    member: bytes | NDArray[np.uint8], height: int, width: int, codec: TargetCodec = "lz4"
) -> StoredTargets:
    """The planes that `pack_targets` was given.

    Raises:
        ShardError: the block is damaged, or is not of an image of this size.
    """
    layout = target_layout(height, width)
    block = np.empty(layout.num_bytes, np.uint8)
    inflate(member, layout, block, codec)
    if codec == "lz4":
        for plane in _differing(block, layout):
            undo_differences(plane)
    low, high = layout.depth.view(block)
    bits = layout.edge.view(block)
    if (bits[:, -1] & (1 << -width % 8) - 1).any():
        raise ShardError("contours are marked outside of the image")
    return StoredTargets(
        millimetres=low + np.uint16(256) * high,
        normal=layout.normal.view(block),
        edge=np.unpackbits(bits, axis=1, count=width).view(np.bool_),
    )


def encode_targets(
    depth: NDArray[np.floating], normal: NDArray[np.floating], edge: NDArray[np.bool_], codec: TargetCodec = "lz4"
) -> bytes:
    """The target block of planes in metres and unit vectors; the arguments are those of `quantised`."""
    return pack_targets(quantised(depth, normal, edge), codec)


def decode_targets(
    member: bytes | NDArray[np.uint8], height: int, width: int, codec: TargetCodec = "lz4"
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """The planes of one sample in metres and unit vectors.

    Returns:
        depth (H, W) in metres, 0 = not known; normal (H, W, 3) of unit length, zero vector = not known;
        edge (H, W); valid (H, W), where depth and normal are both known.

    Raises:
        ShardError: the block is damaged, or is not of an image of this size.
    """
    planes = unpack_targets(member, height, width, codec)
    known = planes.known
    # 255 n: odd whole numbers, so the sum of squares is exact and every decoder gets the same bits.
    normal = 2 * planes.normal.transpose(2, 0, 1).astype(np.float32) - 255
    x, y, z = normal
    normal *= known / np.sqrt(x * x + y * y + z * z)
    depth = planes.millimetres * np.float32(1e-3)
    return depth, np.ascontiguousarray(normal.transpose(1, 2, 0)), planes.edge, known & (planes.millimetres > 0)


def inflate(
    member: bytes | NDArray[np.uint8], layout: TargetLayout, out: NDArray[np.uint8], codec: TargetCodec = "lz4"
) -> None:
    """The bytes of a target block into `out`, (num_bytes,); with codec `lz4` their rows are still differences.

    Raises:
        ShardError: the block is damaged, or is not of an image of this size.
    """
    out[:] = inflated(member, layout, codec)


def inflated(member: bytes | NDArray[np.uint8], layout: TargetLayout, codec: TargetCodec = "lz4") -> NDArray[np.uint8]:
    """The bytes of a target block as `inflate` gives them, in memory (of the member, or new) that cannot be written."""
    content = member
    if codec == "lz4":
        try:
            content = lz4.block.decompress(member, uncompressed_size=layout.num_bytes)
        except lz4.block.LZ4BlockError as error:
            raise damaged_block(layout, str(error)) from error
    if len(content) != layout.num_bytes:
        raise misfitting_block(layout, len(content))
    return np.frombuffer(content, np.uint8)


def damaged_block(layout: TargetLayout, seen: str) -> ShardError:
    """The error for a target block that LZ4 cannot inflate."""
    return ShardError("a target block is damaged", seen=seen, expected=f"{layout.num_bytes} bytes when inflated")


def misfitting_block(layout: TargetLayout, num_bytes: int) -> ShardError:
    """The error for a target block of an image of another size."""
    return ShardError(
        f"a target block does not fit an image of {layout.height} x {layout.width} pixels",
        seen=f"{num_bytes} bytes when inflated",
        expected=f"{layout.num_bytes}",
    )


def undo_differences(plane: NDArray[np.uint8]) -> None:
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


def _differing(block: NDArray[np.uint8], layout: TargetLayout) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Views of the planes whose rows are stored as differences, (..., rows, bytes of a row)."""
    return layout.depth.view(block), layout.normal.view(block).reshape(layout.height, -1)


def _millimetres(depth: NDArray[np.floating]) -> NDArray[np.uint16]:
    # Doubles: 60 m times 1000 has no room left for a half in a float.
    millimetres = np.rint(depth.astype(np.float64) * 1000)
    fits = (millimetres > 0) & (millimetres <= 65535)  # false for NaN
    return np.where(fits, millimetres, 0).astype(np.uint16)


def _normal_codes(normal: NDArray[np.floating]) -> NDArray[np.uint8]:
    squares = np.einsum("hwc,hwc->hw", normal, normal)
    known = (squares > 0) & np.isfinite(squares)
    scaled = normal + 1
    scaled *= 127.5
    np.rint(scaled, out=scaled)
    np.clip(scaled, 1, 255, out=scaled)
    with np.errstate(invalid="ignore"):  # NaN, which is not known
        codes = scaled.astype(np.uint8)
    codes[~known] = 0
    return codes
