"""Image files as arrays; what is damaged is an error, as far as its format lets anyone notice.

A JPEG has no checksum. What damage leaves behind is found by reading the rest of the file out of step, of which libjpeg
warns; Pillow drops these warnings and returns the pixels, wrong from there on. So JPEGs are decoded by `simplejpeg`,
which stops at the first warning. Of damage to the coded pixels of 40 photographs, at random places, it notices every
cut, 93 % of the sectors of 512 zero bytes, 80 % of 64 random bytes, 47 % of 4, and 28 % of single flipped bits (Pillow:
every cut, 0, 20, 2 and 1 %); three in four of the bits that it misses change the image by less than a tenth of a level
on average. Warnings that do not concern the coded pixels are let through, see `_HARMLESS`.

A PNG has checksums, which `fastssl.sources.png` looks at before its pixels are taken. It also decodes most of them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources.eight_bits import pairs, rgb
from fastssl.sources.formats import (
    EXTENSIONS,
    FORMATS,
    cure,
    described,
    hides_lack_of_memory,
    wanting,
)
from fastssl.sources.jpeg import is_plain_jpeg
from fastssl.sources.png import plain_png
from fastssl.sources.regular import read_file

__all__ = ["EXTENSIONS", "decode_image", "decode_plane", "read_image", "read_plane", "wanting"]

# Warnings about a JPEG whose pixels are whole. Bytes between the segments of the header, before tables, frame,
# application data or comments; a colour profile, a version or a colour transform that nobody needs; subsampling that
# the TurboJPEG interface has no name for. Up to three bytes between the pixels and the end of the image are padding,
# which ImageNet has too; when pixels are damaged, the bytes left over are more than three in 98 of 100 cases.
_HARMLESS = re.compile(
    r"Corrupt JPEG data: (bad ICC marker|\d+ extraneous bytes before marker 0x(db|c[012]|e.|fe)"
    r"|[1-3] extraneous bytes before marker 0xd9)"
    r"|Warning: unknown JFIF revision number .*|Unknown Adobe color transform code .*"
    r"|.*Could not determine (subsampling level|colorspace) of JPEG image"
)

_LEAST_MEMORY, _MEMORY_PER_BYTE = 1 << 28, 128
"""Bytes of memory in all, and per byte of the file. In any decoder here an image of 8 megapixels needs at most the
first, and one stored in 1.5 bits a pixel at most the second."""

_ORIENTATION = 0x0112
_TURNED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
"""From the pixels as stored to those that EXIF's orientation means."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode an image file into (H, W, 3) RGB of 8 bits, upright; the content counts, not the name.

    More than 8 bits keep the highest 8 (v >> 8 for 16); transparent pixels show white; of several frames or pages the
    first is taken; colour profiles are not applied. `fastssl.sources.eight_bits` has the details.

    Args:
        size: width and height that it must have; None takes any.

    Raises:
        DataError: it is missing, no regular file, empty, cut short, damaged, too large (a decompression bomb), not an
            image, of a kind whose values have no known range (32 bits, signed, float), or of another size. A fault of
            the machine is its cause.
    """
    pixels = decode_image(read_file(path, "an image"), path)
    height, width, _ = pixels.shape
    if size is not None and size != (width, height):
        seen, expected = f"{width} x {height}", f"{size[0]} x {size[1]}"
        raise DataError("an image does not have its dataset's size", where=path, seen=seen, expected=expected)
    return pixels


def decode_image(content: bytes, where: str | Path) -> NDArray[np.uint8]:
    """`read_image` of a file's bytes; `where` is what errors name."""
    try:
        if not content:
            raise ValueError("an empty file")
        pixels = _decoded_plainly(content)
        return _decoded_by_pillow(content) if pixels is None else pixels
    except UnidentifiedImageError as error:
        raise DataError(
            "an image cannot be read",
            where=where,
            seen=described(content),
            expected=", ".join(FORMATS),
            hint=cure(content),
        ) from _cause(error, content)
    except Image.DecompressionBombError as error:
        raise DataError(
            "an image has too many pixels", where=where, seen=str(error), hint="scale it down, or leave it out"
        ) from error
    except Exception as error:
        # Decoders raise nearly any kind of exception for damaged bytes: OSError, SyntaxError, ValueError, IndexError,
        # struct.error ... The file is at fault whichever it is, but for faults of the machine (`fastssl.faults`), which
        # the chain of causes keeps.
        seen = str(error) or type(error).__name__
        raise DataError("an image cannot be read", where=where, seen=seen) from _cause(error, content)


def _cause(error: Exception, content: bytes) -> Exception:
    """The error, or the lack of memory behind it, which the decoders of some formats call damage.

    So what they may have wanted is asked for once more; the pages are not touched.
    """
    if machine_fault(error) is None and hides_lack_of_memory(content):
        try:
            np.empty(max(_LEAST_MEMORY, _MEMORY_PER_BYTE * len(content)), np.uint8)
        except MemoryError as lack:
            return lack
    return error


def read_plane(path: Path, mode: str | tuple[str, ...], size: tuple[int, int] | None = None) -> NDArray[Any]:
    """`decode_plane` of a file.

    Raises:
        DataError: it is missing too.
    """
    return decode_plane(read_file(path, "a label plane"), path, mode, size)


def decode_plane(
    content: bytes, where: str | Path, mode: str | tuple[str, ...], size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """Decode the PNG of a label plane without any conversion.

    Args:
        where: what errors name.
        mode: what it must hold, or any one of several: Pillow's `1` for bits, `L` for 8 and `I;16` for 16 bits of gray,
            `P` for palette indices, `RGB` for 8 bits of colour, and `RGB;16` for 16, of which Pillow by itself drops
            half. `F`, gray in float32, comes as TIFF, which is otherwise refused.
        size: width and height that it must have; None takes any.

    Returns:
        (H, W), and for colour (H, W, 3), in the type that holds just these values: bool, uint8, uint16 or float32.

    Raises:
        DataError: it is cut short, damaged, not a PNG, or of another mode or size.
    """
    modes = (mode,) if isinstance(mode, str) else mode
    formats = ["PNG", "TIFF"] if "F" in modes else ["PNG"]
    try:
        seen, pixels = _plane(content, formats)
    except UnidentifiedImageError as error:
        seen = f"no {' or '.join(formats)}"
        raise DataError("a label plane does not decode", where=where, seen=seen) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for damaged bytes.
        seen = str(error) or type(error).__name__
        raise DataError("a label plane does not decode", where=where, seen=seen) from error
    height, width = pixels.shape[:2]
    wanted = size or (width, height)
    if seen not in modes or (width, height) != wanted:
        raise DataError(
            "a label plane is not what its dataset says",
            where=where,
            seen=f"{width} x {height} pixels of mode {seen}",
            expected=f"{wanted[0]} x {wanted[1]} of mode {' or '.join(modes)}",
        )
    return pixels


def _plane(content: bytes, formats: list[str]) -> tuple[str, NDArray[Any]]:
    """Mode and pixels."""
    png = plain_png(content)
    if png is not None:
        return png.mode, png.pixels()
    with Image.open(BytesIO(content), formats=formats) as image:
        if image.tile[0].args != "RGB;16B":
            return image.mode, np.array(image)
    return "RGB;16", pairs(content)


def _decoded_plainly(content: bytes) -> NDArray[np.uint8] | None:
    """The pixels of a file of which a glance tells that Pillow has nothing to add; None of any other."""
    if is_plain_jpeg(content):
        try:
            return _strictly_decoded(content)
        except ValueError:
            return None  # for Pillow to find the words, or to decode what this does not
    png = plain_png(content)
    return png.pixels() if png is not None and png.mode == "RGB" and not png.has_texts else None


def _decoded_by_pillow(content: bytes) -> NDArray[np.uint8]:
    # Pillow warns of odd metadata, and of large images long before its limit.
    with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(content), formats=FORMATS) as image:
        if 0 in image.size:
            raise ValueError(f"{image.width} x {image.height} pixels")
        pixels = _jpeg(image, content) if image.format in ("JPEG", "MPO") else rgb(image, content)
        turned = _TURNED.get(_orientation(image))
        return pixels if turned is None else np.ascontiguousarray(turned(pixels))


def _jpeg(image: Image.Image, content: bytes) -> NDArray[np.uint8]:
    if image.mode == "CMYK" and "adobe" not in image.info:
        raise ValueError("a JPEG of four inks without Adobe's mark, so that nobody knows whether 0 is no ink or all")
    try:
        pixels = _strictly_decoded(content)
    except ValueError as error:
        if not _HARMLESS.fullmatch(str(error)):
            raise
        return np.array(image.convert("RGB"))
    # Four colours are turned into three the way that Pillow does it, for it does so everywhere else.
    return np.array(image.convert("RGB")) if image.mode == "CMYK" else pixels


def _strictly_decoded(jpeg: bytes) -> NDArray[np.uint8]:
    from fastssl.jpeg import decode_image  # loads Numba, for which only those who decode should wait

    pixels: NDArray[np.uint8] | None = decode_image(jpeg)
    return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True) if pixels is None else pixels


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:
        if machine_fault(error) is not None:
            raise
        # An EXIF block that cannot be parsed (any exception, see `decode_image`) says nothing about the pixels.
        return 1
    return orientation if isinstance(orientation, int) else 1
