"""The image of a sample, one member of a shard: a way of storing it is a class here, and its name in `IMAGE_CODECS`.

`jpeg`, the default: baseline, 4:2:0, which loses a little. `lz4`: the pixels as they are, in five times the bytes and a
fraction of the time. Height and width come first, 16 bits each with the low byte in front, then one raw LZ4 block of
(H, W, 3) bytes in which every row but the first holds the difference to the row above, modulo 256, as the normals of a
target block do (`fastssl.shards.codec`). benchmarks/LOG.md has the figures of this and of what was not taken.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from fastssl.compiled import compiled
from fastssl.errors import ShardError
from fastssl.native import lz4_decompress
from fastssl.shards.codec import compressed
from fastssl.shards.member_format import MemberFormat, PlaneFormat

ImageCodecName = Literal["jpeg", "lz4"]

JPEG = "jpg"
PIXELS = "image.lz4"
JPEG_QUALITY = 95
"""Quality of JPEGs where none is asked for."""

Content = bytes | NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

_QUANTISATION, _START_OF_SCAN = 0xDB, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
"""JPEG markers (ITU-T T.81, table B.1); the frames are baseline, extended and progressive."""
_HEADER = struct.Struct("<2H")


class ImageSettings(Protocol):
    """The settings of a packing that images depend on."""

    @property
    def jpeg_quality(self) -> int | None:
        """None where images are no JPEGs."""

    @property
    def lz4_level(self) -> int: ...


class ImageCodec(Protocol):
    """A way of storing images, with the settings of one dataset."""

    member: ClassVar[str]
    """Name of the member with the image."""
    version: ClassVar[Literal[2, 3]]
    """Version of the shard format since which there is this codec."""
    lossless: ClassVar[bool]
    in_graph: ClassVar[bool]
    """DALI's graph decodes them too, on a GPU and wherever it changes more than the place of a window."""

    def member_format(self, size: Size) -> MemberFormat:
        """The manifest's words for the member."""

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        """The member of an image, (H, W, 3) RGB in one piece."""

    def check_header(self, member: Content, size: Size) -> None:
        """Take a glance at a member, without its pixels.

        Raises:
            ShardError: it is cut short, of another kind, or an image of another size.
        """

    def are_plain(self, members: Sequence[NDArray[np.uint8]], size: Size) -> Sequence[bool]:
        """Take a glance at many members: those are plain that `check_header` surely finds nothing wrong with."""

    def decode(self, member: Content, size: Size) -> NDArray[np.uint8]:
        """The pixels, (H, W, 3) RGB.

        Raises:
            ShardError: as `check_header`, or the member is damaged.
        """

    def decode_windows(
        self, members: Sequence[NDArray[np.uint8]], size: Size, corners: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> None:
        """The pixels of a window of each member.

        Args:
            members: N of this size.
            size: height and width.
            corners: (N, 2) first row and column of each window.
            out: (N, h, w, 3) to be filled, in one piece; may hold anything if there is an error.

        Raises:
            ShardError: as `decode`.
        """

    def check_settings(self, member: Content) -> None:
        """Check a sound member beyond its pixels.

        Raises:
            ShardError: it was made with other settings than these.
        """


@dataclass(frozen=True, slots=True)
class JpegImages:
    """Baseline JPEG, encoded by libjpeg-turbo; `fastssl.jpeg` and DALI decode it to the same pixels on the CPU.

    One by itself is decoded by libjpeg-turbo, which needs no compiled functions to be loaded.
    """

    settings: ImageSettings

    member: ClassVar[str] = JPEG
    version: ClassVar[Literal[2, 3]] = 2
    lossless: ClassVar[bool] = False
    in_graph: ClassVar[bool] = True

    def member_format(self, size: Size) -> MemberFormat:
        return MemberFormat(codec="jpeg", meaning="RGB image, baseline JPEG of height x width")

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        return _encoded_jpeg(image, self.settings.jpeg_quality)

    def check_header(self, member: Content, size: Size) -> None:
        # Start and end of image; what is cut short would otherwise be an error without a name, or gray pixels.
        if len(member) < 4 or bytes(member[:2]) != b"\xff\xd8" or bytes(member[-2:]) != b"\xff\xd9":
            raise ShardError("a JPEG is damaged", seen="the stream is cut short or not a JPEG")
        try:
            height, width = simplejpeg.decode_jpeg_header(member)[:2]
        except ValueError as error:
            raise ShardError("a JPEG is damaged", seen=str(error)) from error
        _check_size("a JPEG", (height, width), size)

    def are_plain(self, members: Sequence[NDArray[np.uint8]], size: Size) -> Sequence[bool]:
        from fastssl.jpeg import begin_and_end_alike  # loads Numba

        return begin_and_end_alike(members, size)

    def decode(self, member: Content, size: Size) -> NDArray[np.uint8]:
        self.check_header(member, size)  # before pixels are made, which might be too many
        return _decoded_jpeg(member)

    def decode_windows(
        self, members: Sequence[NDArray[np.uint8]], size: Size, corners: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> None:
        from fastssl.jpeg import decode_windows  # loads Numba, for which only those who decode many should wait

        height, width = out.shape[1:3]
        for number in decode_windows(members, size, corners, out):
            image, (top, left) = _decoded_jpeg(members[number]), corners[number]
            _check_size("a JPEG", image.shape[:2], size)
            out[number] = image[top : top + height, left : left + width]

    def check_settings(self, member: Content) -> None:
        if _jpeg_tables(bytes(member)) != _expected_tables(self.settings.jpeg_quality):
            expected = f"baseline, 4:2:0, tables of quality {self.settings.jpeg_quality}"
            raise ShardError("a JPEG was not made with the manifest's settings", expected=expected)


def decoded_as_loaded(codec: ImageCodec, member: bytes, size: Size) -> NDArray[np.uint8]:
    """The pixels of a whole image, (H, W, 3), by the way that loaders take; raises as `ImageCodec.decode_windows`."""
    image = np.empty((1, *size, 3), np.uint8)
    codec.decode_windows([np.frombuffer(member, np.uint8)], size, np.zeros((1, 2), np.int64), image)
    pixels: NDArray[np.uint8] = image[0]
    return pixels


def _decoded_jpeg(member: Content) -> NDArray[np.uint8]:
    try:
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(member, "RGB", strict=True)
    except ValueError as error:
        raise ShardError("a JPEG is damaged", seen=str(error)) from error
    return image


def _encoded_jpeg(image: NDArray[np.uint8], quality: int | None) -> bytes:
    jpeg: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", "420")
    return jpeg


@cache
def _expected_tables(quality: int | None) -> list[bytes]:
    return _jpeg_tables(_encoded_jpeg(np.zeros((16, 16, 3), np.uint8), quality))


def _jpeg_tables(jpeg: bytes) -> list[bytes]:
    """The quantisation tables and the components of a JPEG's frame, with their markers: what its settings determine."""
    tables, start = [], 2
    while start + 4 <= len(jpeg) and jpeg[start] == 0xFF:
        marker, stop = jpeg[start + 1], start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        if marker == _START_OF_SCAN:
            break
        if marker == _QUANTISATION:
            tables.append(jpeg[start:stop])
        elif marker in _FRAMES:
            tables.append(jpeg[start : start + 5] + jpeg[start + 9 : stop])  # without height and width
        start = stop
    return tables


@dataclass(frozen=True, slots=True)
class Lz4Images:
    """Differences of rows in an LZ4 block; a window takes as many rows as lie above its end, and its own columns."""

    settings: ImageSettings

    member: ClassVar[str] = PIXELS
    version: ClassVar[Literal[2, 3]] = 3
    lossless: ClassVar[bool] = True
    in_graph: ClassVar[bool] = False

    def member_format(self, size: Size) -> MemberFormat:
        pixels = PlaneFormat(
            name="image",
            offset=0,
            dtype="uint8",
            shape=[*size, 3],
            differences="rows",
            meaning="RGB pixels",
        )
        return MemberFormat(
            codec="sized-lz4-block",
            meaning="RGB image, height and width in 16 bits each, low byte first, then one raw LZ4 block",
            inflated_bytes=3 * size[0] * size[1],
            planes=[pixels],
        )

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        differences = image.copy()
        differences[1:] -= image[:-1]
        return _HEADER.pack(*image.shape[:2]) + compressed(differences.reshape(-1), level=self.settings.lz4_level)

    def check_header(self, member: Content, size: Size) -> None:
        if len(member) <= _HEADER.size:
            raise ShardError("an image is damaged", seen=f"{len(member)} bytes")
        height, width = _HEADER.unpack(bytes(member[: _HEADER.size]))
        _check_size("an image", (height, width), size)

    def are_plain(self, members: Sequence[NDArray[np.uint8]], size: Size) -> Sequence[bool]:
        header = _HEADER.pack(*size)
        return [len(member) > _HEADER.size and bytes(member[: _HEADER.size]) == header for member in members]

    def decode(self, member: Content, size: Size) -> NDArray[np.uint8]:
        self.check_header(member, size)  # before memory is asked for, which might be too much
        image = np.empty((*size, 3), np.uint8)
        self._decode_window(member, size, (0, 0), image)
        return image

    def decode_windows(
        self, members: Sequence[NDArray[np.uint8]], size: Size, corners: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> None:
        for member, corner, window in zip(members, corners.tolist(), out, strict=True):
            self.check_header(member, size)
            self._decode_window(member, size, corner, window)

    def _decode_window(self, member: Content, size: Size, corner: Sequence[int], out: NDArray[np.uint8]) -> None:
        block = np.frombuffer(member, np.uint8, offset=_HEADER.size)
        rows = np.empty((size[0], 3 * size[1]), np.uint8)
        top, left = map(np.uint64, corner)
        inflated = compiled(_fill_window)(
            lz4_decompress(), block.ctypes.data, len(block), rows, top, left, out.reshape(len(out), -1)
        )
        if inflated != rows.size:
            seen = f"LZ4's error {inflated}" if inflated < 0 else f"{inflated} bytes when inflated"
            raise ShardError("an image is damaged", seen=seen, expected=f"{rows.size} bytes when inflated")

    def check_settings(self, member: Content) -> None:
        """Nothing in it tells its level."""


def _fill_window(inflate: Any, block: Any, num_bytes: Any, rows: Any, top: Any, left: Any, window: Any) -> Any:
    """Inflate a block into `rows`, (H, 3 W), and fill the window, (h, 3 w), if it is sound; the bytes that it holds."""
    inflated = inflate(block, rows.ctypes.data, num_bytes, rows.size)
    if inflated == rows.size:
        width, first = np.uint64(window.shape[1]), np.uint64(3) * left
        # Not in the rows themselves: a loop over two arrays that may be one takes eight times as long.
        values = np.zeros(width, np.uint8)
        for i in range(top + np.uint64(window.shape[0])):
            differences = rows[i, first : first + width]
            for j in range(width):
                values[j] += differences[j]
            if i >= top:
                seen = window[i - top]
                for j in range(width):
                    seen[j] = values[j]
    return inflated


def _check_size(what: str, seen: Size, expected: Size) -> None:
    if seen != expected:
        words = (f"{height} x {width}" for height, width in (seen, expected))
        raise ShardError(f"{what} has the wrong size", seen=next(words), expected=next(words))


IMAGE_CODECS: Mapping[ImageCodecName, Callable[[ImageSettings], ImageCodec]] = {"jpeg": JpegImages, "lz4": Lz4Images}
