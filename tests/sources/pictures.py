"""Image files as datasets have them, written by Pillow, or from the format's specification where Pillow cannot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def save(path: Path, picture: Image.Image | NDArray[Any], **options: Any) -> Path:
    """Write an image in the format that its name says, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


def png(pixels: NDArray[Any]) -> bytes:
    """Gray or RGB of 8 or 16 bits; every row has another filter than the one above it."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"))).view(np.uint8).reshape(height, -1)
    pixel = rows.shape[1] // width
    left, above = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:], above[1:] = rows[:, :-pixel], rows[:-1]
    filters = np.arange(height, dtype=np.uint8)[:, None] % 3  # none, left, above
    filtered = np.concatenate([filters, rows - np.choose(filters, [np.zeros_like(rows), left, above])], axis=1)
    colour = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
