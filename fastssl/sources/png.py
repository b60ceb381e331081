"""PNGs as datasets have them, at three times Pillow's speed, and with every checksum looked at.

A PNG has a CRC for every chunk, and its pixels another checksum, of the inflated stream. Pillow does not look at the
CRCs of the pixels, and its decoder may stop before the end of the stream, so that half of all random damage goes
unnoticed. Here whatever does not agree is an error: a CRC of a chunk that the pixels need, the stream's checksum, more
or fewer bytes than the header says, and a row's filter that does not exist.

What is decoded here is gray and colour of 8 and 16 bits and palette indices of 8. Other PNGs (interlaced, transparent,
of 1, 2 or 4 bits, animated) are left to Pillow, and so are those with chunks that say something else about the pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import deflate
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_NO_INTERLACING = (0, 0, 0)
"""A header's last three bytes: the only compression and filters that there are, and rows from top to bottom."""
_PLAIN = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"tEXt"}
"""Chunks without any effect on how Pillow decodes."""
_MODES = {(8, 0): "L", (16, 0): "I;16", (8, 2): "RGB", (16, 2): "RGB;16", (8, 3): "P"}
"""Pillow's name of the mode, by bits and kind of colour in the header."""
_MOST_PIXELS = 1 << 26
"""Pixels; whether a larger image is a decompression bomb is for Pillow to decide."""


@dataclass(frozen=True, slots=True)
class PlainPng:
    """A PNG whose pixels `pixels` can decode."""

    mode: str
    """As Pillow names it, and `RGB;16` for 16 bits of colour."""
    width: int
    height: int
    has_texts: bool
    """In which some programs keep EXIF data."""
    stream: bytes | memoryview
    """The compressed pixels."""

    def pixels(self) -> NDArray[Any]:
        """(H, W) or (H, W, 3), uint8 or uint16; palette indices as they are.

        Raises:
            ValueError: the compressed pixels are damaged, or not as many as the header says.
        """
        from fastssl.sources.png_kernel import undo_filters  # loads numba, for which only those who decode should wait

        channels, two_bytes = 3 if self.mode.startswith("RGB") else 1, self.mode.endswith("16")
        pixel = 2 * channels if two_bytes else channels
        size = self.height * (1 + self.width * pixel)
        try:
            inflated = deflate.zlib_decompress(self.stream, size)
        except deflate.DeflateError as error:
            raise ValueError("the compressed pixels are damaged, or more than the header says") from error
        if len(inflated) != size:
            raise ValueError(f"{len(inflated)} bytes of pixels and filters where the header says {size}")
        filtered = np.frombuffer(inflated, np.uint8).reshape(self.height, -1)
        rows = np.empty((self.height, self.width * pixel), np.uint8)
        done = undo_filters(filtered, pixel, rows)
        if done < self.height:
            raise ValueError(f"a row's filter is {filtered[done, 0]}, of 0 to 4")
        # The higher byte comes first.
        values: NDArray[Any] = rows.view(">u2").astype(np.uint16) if two_bytes else rows
        return values if channels == 1 else values.reshape(self.height, self.width, channels)


def plain_png(content: bytes) -> PlainPng | None:
    """What a file holds, its pixels not yet inflated; None if it is a PNG of another kind, or none at all.

    Raises:
        ValueError: it is a PNG, of whichever kind, that is cut short, or a chunk that the pixels need is damaged.
    """
    if not content.startswith(_SIGNATURE):
        return None
    chunks = _chunks(content)
    kinds = [chunk.kind for chunk in chunks]
    pixels = [chunk.body for chunk in chunks if chunk.kind == b"IDAT"]
    regular = _in_order(kinds) and len(chunks[0].body) == _HEADER.size and all(chunk.whole for chunk in chunks)
    if not (regular and _PLAIN.issuperset(kinds)):
        return None
    width, height, bits, colour, *methods = _HEADER.unpack(chunks[0].body)
    mode = _MODES.get((bits, colour))
    most = min(Image.MAX_IMAGE_PIXELS or _MOST_PIXELS, _MOST_PIXELS)
    if mode is None or tuple(methods) != _NO_INTERLACING or not 0 < width * height <= most:
        return None
    stream = pixels[0] if len(pixels) == 1 else b"".join(pixels)
    return PlainPng(mode, width, height, b"tEXt" in kinds, stream)


class _Chunk(NamedTuple):
    kind: bytes
    body: memoryview
    whole: bool
    """Its CRC is right."""


def _chunks(content: bytes) -> list[_Chunk]:
    """All chunks up to the last one, which has to be there.

    Raises:
        ValueError: it is not there, or a chunk that the pixels need is damaged.
    """
    view, chunks, start = memoryview(content), list[_Chunk](), len(_SIGNATURE)
    while not chunks or chunks[-1].kind != b"IEND":
        if start + 12 > len(content):
            raise ValueError("the file is cut short")
        length, kind = struct.unpack_from(">I4s", content, start)
        stop = start + 8 + length
        whole = deflate.crc32(view[start + 4 : stop]).to_bytes(4) == view[stop : stop + 4]
        # An upper-case letter marks the chunks without which the image cannot be shown.
        if not whole and kind[:1].isupper():
            raise ValueError(f"a {kind.decode('latin-1')} chunk is damaged or cut short")
        chunks.append(_Chunk(kind, view[start + 8 : stop], whole))
        start = stop + 4
    return chunks


def _in_order(kinds: list[bytes]) -> bool:
    """One header, at the start, and the pixels in chunks one after the other."""
    runs = [kind for kind, _ in groupby(kinds)]
    return runs[0] == b"IHDR" and kinds.count(b"IHDR") == 1 and runs.count(b"IDAT") == 1
