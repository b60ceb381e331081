"""Formats of images: which ones can be read on this machine, and what a file is that cannot.

What Pillow reads without a plug-in counts, as it was built here; HEIF needs `pillow-heif`, which adds itself to Pillow.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import struct
import warnings
from io import BytesIO
from typing import Any

from PIL import TiffImagePlugin, features

_ALWAYS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm"),
}
_IF_BUILT = {
    "webp": ("WEBP", "WebP", (".webp",)),
    "avif": ("AVIF", "AVIF", (".avif", ".avifs")),
    "jpg_2000": ("JPEG2000", "JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")),
}
"""Format, its name in words, and endings, by Pillow's name of the feature."""
_HEIF = (".heic", ".heif", ".hif", ".heics", ".heifs")
_HEIF_CURE = "pip install 'fastssl[heif]'"


def _has_heif() -> bool:
    """The plug-in for HEIF is installed; it is registered then."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ModuleNotFoundError:
        return False
    return True


def _quiet_libtiff() -> None:
    """Keep libtiff from writing to stderr what Pillow tells in an exception, or what does not matter.

    Its handlers belong to the process and are set once, before any file is read, so threads cannot meet in between.
    """
    library: Any = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        try:
            handler = getattr(library, name)
        except AttributeError:
            return  # a Pillow without libtiff, or one that hides it
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)


def _is_built(name: str) -> bool:
    """Pillow was built with this. A module that is there and cannot be loaded is an error, and no missing format."""
    if name == "jpg_2000":
        return bool(features.check_codec(name))
    try:
        importlib.import_module(f"PIL._{name}")
    except ModuleNotFoundError:
        return False
    return True


def _load_readers() -> None:
    """Load what Pillow would load at the first image, where it takes one that cannot be loaded for a missing format."""
    for reader in ("Jpeg", "Mpo", "Png", "Bmp", "Tiff", "Gif", "Ppm", "WebP", "Avif", "Jpeg2K"):
        importlib.import_module(f"PIL.{reader}ImagePlugin")


_heif = _has_heif()
_load_readers()
_quiet_libtiff()
_present = {name for name in _IF_BUILT if _is_built(name)}
_built = [(kind, endings) for name, (kind, _, endings) in _IF_BUILT.items() if name in _present]

FORMATS: tuple[str, ...] = (*_ALWAYS, *(kind for kind, _ in _built), *(["HEIF"] if _heif else []))
"""Those that are read on this machine, as Pillow names them."""

EXTENSIONS: tuple[str, ...] = (
    *(ending for endings in _ALWAYS.values() for ending in endings),
    *(ending for _, endings in _built for ending in endings),
    *(_HEIF if _heif else ()),
)
"""Endings of the files that count as images, in either case; only those that can be read on this machine."""

_WANTING = {
    **{
        ending: f"a Pillow built with {words}"
        for name, (_, words, endings) in _IF_BUILT.items()
        if name not in _present
        for ending in endings
    },
    **(dict.fromkeys(_HEIF, _HEIF_CURE) if not _heif else {}),
}


def wanting(ending: str) -> str | None:
    """What would read files of this ending, such as ``.heic``, and is not there; None for all others.

    It is the subject of "... reads them".
    """
    return _WANTING.get(ending.lower())


_HEIF_BRANDS = rb"hei[cxms]|hev[cxms]|mif1|msf1|mif2"
_SIGNS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "an AVIF image"),
    (re.compile(rb".{4}ftyp(" + _HEIF_BRANDS + rb")", re.DOTALL), "an HEIF image"),
    (re.compile(rb".{4}ftyp(crx )", re.DOTALL), "a raw photo (CR3)"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a film (MP4 or QuickTime)"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 image"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL image"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG"),
    (re.compile(rb"\x89PNG"), "a PNG"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "a TIFF"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "a WebP image"),
    (re.compile(rb"GIF8"), "a GIF"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip file"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS, without the file that it stands for"),
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml|<svg)", re.IGNORECASE), "a page of HTML or XML"),
)


def described(content: bytes) -> str:
    """What a file is that no decoder took, in words: its format, and what is odd about it where that can be told."""
    words = next((words for sign, words in _SIGNS if sign.match(content)), None)
    if words == "a TIFF":
        return f"{words}{_tiff_layout(content)}"
    if words == "a JPEG":
        return f"{words}{_jpeg_layout(content)}"
    return "no image" if words is None else f"no image that can be read here, but {words}"


def cure(content: bytes) -> str | None:
    """What would read a file that no decoder took."""
    words = next((words for sign, words in _SIGNS if sign.match(content)), None)
    endings = {"an HEIF image": ".heic", "an AVIF image": ".avif", "a JPEG 2000 image": ".jp2", "a WebP image": ".webp"}
    missing = wanting(endings.get(words or "", ""))
    return None if missing is None else f"{missing} reads it"


_TELLS_NOTHING = re.compile(rb"RIFF.{4}WEBP|.{4}ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51", re.DOTALL)
"""WebP, AVIF and HEIF, JPEG 2000."""


def hides_lack_of_memory(content: bytes) -> bool:
    """The decoder of this format says the same where memory is lacking as where the file is damaged."""
    return _TELLS_NOTHING.match(content) is not None


def _tiff_layout(content: bytes) -> str:
    """The tags that Pillow found no mode for."""
    header = content[:16] if b"+" in content[2:4] else content[:8]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file = BytesIO(content)
            file.seek(tags.next)
            tags.load(file)
        names = {
            258: "bits",
            339: "sample format",
            277: "samples",
            262: "photometric",
            338: "extra",
            259: "compression",
        }
        told = [f"{name} {_numbers(tags[tag])}" for tag, name in names.items() if tag in tags]
    except (SyntaxError, OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error):
        return " whose tags cannot be read"
    return f" of a kind that is not read: {', '.join(told)}"


def _numbers(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
"""Markers of a JPEG that say how many bits and channels there are; the last is that of JPEG-LS."""


def _jpeg_layout(content: bytes) -> str:
    start = 2
    while start + 10 <= len(content) and content[start] == 0xFF:
        marker = content[start + 1]
        if marker in _FRAMES:
            kind = "lossless (JPEG-LS)" if marker == 0xF7 else f"of {content[start + 4]} bits a sample"
            return f" {kind} and {content[start + 9]} channels, which is not read"
        start += 2 + int.from_bytes(content[start + 2 : start + 4])
    return " whose header is damaged"
