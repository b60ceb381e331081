"""JPEGs of which a glance at their headers says that Pillow need not look at them.

Pillow takes four times as long for the header and for EXIF's orientation, and says the same. What is looked at here is
only what most files have and what can say nothing else: a header of the segments below, each as long as it says, with
one frame of three colours. All others (EXIF, colour profiles, Adobe's mark, gray, four inks) are left to Pillow.
"""

from __future__ import annotations

import struct

from PIL import Image

_START = b"\xff\xd8"
_SEGMENT = struct.Struct(">BBH")
"""What a segment begins with: 255, its marker, and its length without these two (ITU-T T.81, B.1.1.4)."""
_FRAME = struct.Struct(">BHHB")
"""Bits of a sample, height, width, number of colours."""
_JFIF, _SCAN, _FRAMES = 0xE0, 0xDA, (0xC0, 0xC1, 0xC2)
_SILENT = (0xDB, 0xC4, 0xDD, 0xFE)
"""Tables of both kinds, restart intervals and comments."""
_LEAST_JFIF = 9
"""With a version; Pillow takes a file for no JPEG where a shorter one calls itself JFIF."""
_MOST_PIXELS = 1 << 26
"""Whether a larger image is a decompression bomb is for Pillow to decide."""


def is_plain_jpeg(content: bytes) -> bool:
    """The file is a JPEG to Pillow too, of RGB, upright, and of an allowed size, unless libjpeg says otherwise."""
    if not content.startswith(_START):
        return False
    start, framed = len(_START), False
    while start + _SEGMENT.size + _FRAME.size <= len(content):
        prefix, marker, length = _SEGMENT.unpack_from(content, start)
        if prefix != 0xFF:
            return False
        if marker == _SCAN:
            return framed
        if marker in _FRAMES:
            if framed or not _is_usual(*_FRAME.unpack_from(content, start + _SEGMENT.size)):
                return False
            framed = True
        elif marker not in _SILENT and not (marker == _JFIF and length >= _LEAST_JFIF):
            return False
        if length < 2:
            return False
        start += 2 + length
    return False


def _is_usual(bits: int, height: int, width: int, colours: int) -> bool:
    most = min(Image.MAX_IMAGE_PIXELS or _MOST_PIXELS, _MOST_PIXELS)
    return bits == 8 and colours == 3 and 0 < width * height <= most
