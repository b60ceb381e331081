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
from fastssl.sources.png import plain_png

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of the files that count as images, in either case."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

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

    16-bit gray keeps its high byte, as Pillow does for 16-bit colour; transparent pixels show white; of several frames
    the first is taken; colour profiles are not applied.

    Args:
        size: width and height that it must have; None takes any.

    Raises:
        DataError: it is missing, empty, cut short, damaged, too large (a decompression bomb), not an image, or of
            another size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError("an image cannot be read", where=path, seen=error.strerror) from error
    pixels = decode_image(content, path)
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
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, and of large images long before its limit.
            warnings.simplefilter("ignore")
            return _decoded(content)
    except UnidentifiedImageError:
        raise DataError("an image cannot be read", where=where, seen="no image", expected=", ".join(_FORMATS)) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            "an image has too many pixels", where=where, seen=str(error), do="scale it down, or leave it out"
        ) from error
    except Exception as error:
        # Decoders raise nearly any kind of exception for damaged bytes: OSError, SyntaxError, ValueError, IndexError,
        # struct.error ... The file is at fault whichever it is.
        raise DataError("an image cannot be read", where=where, seen=str(error) or type(error).__name__) from error


def read_plane(path: Path, mode: str | tuple[str, ...], size: tuple[int, int] | None = None) -> NDArray[Any]:
    """`decode_plane` of a file.

    Raises:
        DataError: it is missing too.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("a label plane is missing", where=path) from error
    except OSError as error:
        raise DataError("a label plane cannot be read", where=path, seen=error.strerror) from error
    return decode_plane(content, path, mode, size)


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
    except UnidentifiedImageError:
        raise DataError("a label plane does not decode", where=where, seen=f"no {' or '.join(formats)}") from None
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
    # Pillow hands out the first byte of each pair. If it is told that the order is the other one, that is the low one.
    high, low = (_bytes_of_pairs(content, order) for order in ("RGB;16B", "RGB;16L"))
    return "RGB;16", high.astype(np.uint16) << np.uint16(8) | low


def _bytes_of_pairs(content: bytes, order: str) -> NDArray[np.uint8]:
    with Image.open(BytesIO(content)) as image:
        image.tile = [tile._replace(args=order) for tile in image.tile]
        return np.array(image)


def _decoded(content: bytes) -> NDArray[np.uint8]:
    png = plain_png(content)
    if png is not None and png.mode == "RGB" and not png.has_texts:
        return png.pixels()
    with Image.open(BytesIO(content), formats=_FORMATS) as image:
        if 0 in image.size:
            raise ValueError(f"{image.width} x {image.height} pixels")
        pixels = _jpeg(image, content) if image.format in ("JPEG", "MPO") else np.array(_rgb(image))
        turned = _TURNED.get(_orientation(image))
        return pixels if turned is None else np.ascontiguousarray(turned(pixels))


def _jpeg(image: Image.Image, content: bytes) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        if not _HARMLESS.fullmatch(str(error)):
            raise
        return np.array(image.convert("RGB"))
    # Four colours are turned into three the way that Pillow does it, for it does so everywhere else.
    return np.array(image.convert("RGB")) if image.mode == "CMYK" else pixels


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # An EXIF block that cannot be parsed (any exception, see `decode_image`) says nothing about the pixels.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"gray values of mode {image.mode} have no known range")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
