"""Pixels of every mode that Pillow may return as RGB of 8 bits; what has no known range is refused by name.

Gray of b bits more than 8 keeps its highest 8 (v >> b - 8), as Pillow does for colour of 16; fewer are spread over 0 to
255. Transparent pixels show white.

Pillow takes some files as something else than they say, without a word. Those are seen to here:

- TIFF: 12 bits of gray come as they are, 16 bits whose 0 is white are not inverted, signed numbers are taken for
  unsigned ones, numbers of 32 bits for any, planes of 16 bits that lie apart for planes of 8, and alpha that lies apart
  for a plane of zeros;
- PNG: the gray or colour that is transparent is compared with a scaled value, or with half of one;
- JPEG 2000: fewer than 8 bits are shifted up and not spread, more than 8 of several channels wrap around at white;
- BMP: pixels of 4 or 8 bits with two colours, black and white, are taken for pixels of one bit.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _EXTRA, _SUBSAMPLING, _FORMAT = 258, 259, 262, 284, 338, 530, 339
_WHITE_IS_ZERO, _YCBCR, _APART, _UNSIGNED, _ASSOCIATED = 0, 6, 2, 1, 1

_KNOWN_MODES = ("1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def rgb(image: Image.Image, content: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) of 8 bits, of the first frame, as it is stored.

    Args:
        image: what Pillow made of the content, its pixels not yet loaded.

    Raises:
        ValueError: the pixels are of a kind that has no known range, or that Pillow would misread.
        Exception: whatever Pillow raises for damaged pixels.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _see_to_tiff(image)
    if image.format == "BMP" and image.mode == "1" and content[28:30] != b"\1\0" and content[14:18] != b"\x0c\0\0\0":
        with Image.open(BytesIO(_with_whole_palette(content)), formats=["BMP"]) as whole:
            return np.array(whole.convert("RGB"))
    if image.mode.startswith("I"):
        return _from_gray(image)
    if image.format == "JPEG2000":
        image = _spread(image, _bits_of_jpeg_2000(content))
    if image.mode not in _KNOWN_MODES:
        raise ValueError(f"values of mode {image.mode}, which have no known range")
    if image.format == "PNG" and image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        return _from_keyed_png(image, content)
    return np.array(_on_white(image).convert("RGB"))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    if image.mode == "La":  # which Pillow turns into nothing but LA
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _from_gray(image: Image.Image) -> NDArray[np.uint8]:
    """A gray image of up to 16 bits, scaled to 8."""
    values = np.asarray(image)
    bits = 16
    if image.format == "TIFF":
        bits = _tags(image)[_BITS]
        if _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = 2**bits - 1 - values
    elif image.format not in ("PNG", "PPM", "JPEG2000"):  # whose values Pillow spreads over 16 bits
        raise ValueError(f"gray values of mode {image.mode}, which have no known range")
    if values.size and (values.min() < 0 or values.max() >= 2**bits):
        raise ValueError(f"gray values of {values.min()} to {values.max()} where there are {bits} bits")
    gray = (values >> (bits - 8)).astype(np.uint8)
    if image.format == "PNG" and "transparency" in image.info:
        gray[values == image.info["transparency"]] = 255
    return np.repeat(gray[..., None], 3, axis=2)


def _from_keyed_png(image: Image.Image, content: bytes) -> NDArray[np.uint8]:
    """One gray or colour of the file is transparent, told as it is stored there."""
    bits = content[24]
    if bits == 16:
        values: NDArray[Any] = pairs(content)
        shown = (values >> 8).astype(np.uint8)
    else:
        shown = np.array(image.convert("RGB"))
        values = shown // (255 // (2**bits - 1))
    # Of a colour of 8 bits the lower byte counts (PNG specification, third edition, 11.3.1.1).
    key = np.atleast_1d(image.info["transparency"]) & (2**bits - 1)
    shown[(values == key).all(axis=-1)] = 255
    return shown


def pairs(content: bytes) -> NDArray[np.uint16]:
    """(H, W, 3), uint16: a PNG's 16 bits of colour, of which Pillow hands out the first byte.

    If it is told that the order is the other one, that is the lower one.
    """
    high, low = (_bytes_of_pairs(content, order) for order in ("RGB;16B", "RGB;16L"))
    return high.astype(np.uint16) << np.uint16(8) | low


def _bytes_of_pairs(content: bytes, order: str) -> NDArray[np.uint8]:
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        image.tile = [tile._replace(args=order) for tile in image.tile]
        return np.array(image)


def _with_whole_palette(content: bytes) -> bytes:
    """A BMP that says it uses all colours that its bits can name; those that it does not have are not used either."""
    return content[:46] + bytes(4) + content[50:]


_START_OF_CODES = b"\xff\x4f\xff\x51"


def _bits_of_jpeg_2000(content: bytes) -> set[int]:
    """The channels' bits, as the SIZ segment says (ISO/IEC 15444-1, A.5.1)."""
    start = content.find(_START_OF_CODES)
    count = int.from_bytes(content[start + 40 : start + 42])
    return {(bits & 0x7F) + 1 for bits in content[start + 42 : start + 42 + 3 * count : 3]}


def _spread(image: Image.Image, bits: set[int]) -> Image.Image:
    """Fewer than 8 bits, which Pillow has shifted up, spread over 0 to 255."""
    if bits == {8}:
        return image
    if len(bits) != 1 or max(bits) > 8 or image.mode not in ("L", "LA", "RGB", "RGBA"):
        told = " and ".join(map(str, sorted(bits)))
        raise ValueError(f"a JPEG 2000 image of mode {image.mode} with {told} bits a channel")
    most = 2 ** max(bits) - 1
    return image.point([(value >> (8 - max(bits))) * 255 // most for value in range(256)] * len(image.getbands()))


def _tags(image: Image.Image) -> dict[int, Any]:
    """The tags of a TIFF, with those that Pillow reads as tuples as their first number."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # of TIFFs alone, which these are
    return {tag: value[0] if isinstance(value, tuple) and value else value for tag, value in tags.items()}


def _see_to_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse what Pillow would misread, or have libtiff read it.

    Raises:
        ValueError: see above.
    """
    tags = _tags(image)
    bits, kind, planes = tags.get(_BITS, 1), tags.get(_FORMAT, _UNSIGNED), tags.get(_PLANES, 1)
    if kind != _UNSIGNED or bits > 16:
        words = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(kind, "unknown")
        raise ValueError(f"a TIFF of {words} numbers of {bits} bits, which have no known range")
    stored_raw = tags.get(_COMPRESSION, 1) == 1
    if planes == _APART and image.mode not in ("1", "L", "P", "I;16", "I;16B"):
        if image.mode not in ("RGB", "RGBA", "CMYK", "YCbCr") or tags.get(_EXTRA) == _ASSOCIATED:
            raise ValueError(f"a TIFF of mode {image.mode} whose planes lie apart")
        if stored_raw and bits == 16:
            _let_libtiff_read(image)
    if tags.get(_PHOTOMETRIC) == _YCBCR and stored_raw and image.tag_v2.get(_SUBSAMPLING, (2, 2)) != (1, 1):
        raise ValueError("a TIFF of YCbCr with fewer pixels of colour, not compressed")


def _let_libtiff_read(image: TiffImagePlugin.TiffImageFile) -> None:
    """What Pillow does by itself for compressed files; libtiff hands out numbers in the machine's order."""
    width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    tile = image.tile[0]
    args = (f"{image.mode};16N", False, image.tag_v2._offset)
    image.use_load_libtiff = True
    image.tile = [tile._replace(codec_name="libtiff", extents=(0, 0, width, height), offset=0, args=args)]
