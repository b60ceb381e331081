"""A glance at a JPEG never says more than Pillow does, and says it of the files that most datasets have."""

from __future__ import annotations

import random
import struct
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastssl.errors import DataError
from fastssl.sources import images
from fastssl.sources.formats import FORMATS
from fastssl.sources.images import decode_image
from fastssl.sources.jpeg import is_plain_jpeg

ORIENTATION = 0x0112


def encoded(mode: str = "RGB", size: tuple[int, int] = (48, 40), **options: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).resize(size).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0, "quality": 95}, {"progressive": True}, {"restart_marker_rows": 1}]
)
def test_what_most_programs_write_is_plain(options: dict[str, Any]) -> None:
    assert is_plain_jpeg(encoded(**options))
    assert is_plain_jpeg(encoded(comment=b"by a program", **options))


@pytest.mark.parametrize(
    "content",
    [
        encoded(exif=turned()),
        encoded("L"),
        encoded("CMYK"),
        encoded(icc_profile=bytes(200)),
        with_segment(encoded(), 0xEE, b"Adobe\0\x64\0\0\0\0\1"),
        with_segment(encoded(), 0xE0, b"JFIF"),
        with_segment(encoded(), 0xFE, b"")[:60],
        encoded()[:2] + b"\0" + encoded()[2:],
        encoded()[:2],
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
    ],
    ids=["EXIF", "gray", "four inks", "profile", "Adobe", "JFIF", "cut", "padding", "two bytes", "nothing", "PNG"],
)
def test_everything_else_is_left_to_pillow(content: bytes) -> None:
    assert not is_plain_jpeg(content)


def test_a_decompression_bomb_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 40 - 1)
    assert not is_plain_jpeg(content)


def seen_by_pillow(content: bytes) -> tuple[str | None, str, tuple[int, int], int]:
    """Format, mode, size and orientation, which Pillow finds without the pixels."""
    with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(content), formats=FORMATS) as image:
        return image.format, image.mode, image.size, image.getexif().get(ORIENTATION, 1)


def damaged_headers(seed: int, count: int) -> list[bytes]:
    """Files with a few changed bytes before the pixels."""
    rng = random.Random(seed)
    whole = [
        encoded(),
        encoded(progressive=True),
        encoded(exif=turned()),
        encoded("L"),
        encoded("CMYK"),
        encoded(comment=b"c"),
    ]
    files = []
    for _ in range(count):
        content = bytearray(rng.choice(whole))
        header = content.index(b"\xff\xda")
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(header)] = rng.choice([0, 1, 2, 8, 0xFF, 0xE1, 0xC0, rng.randrange(256)])
        files.append(bytes(content))
    return files


def test_pillow_sees_the_same_in_whatever_is_called_plain() -> None:
    plain = [content for content in damaged_headers(seed=1, count=3000) if is_plain_jpeg(content)]
    assert len(plain) > 500
    for content in plain:
        try:
            pixels = decode_image(content, "a.jpg")
        except DataError:
            continue
        height, width, _ = pixels.shape
        assert seen_by_pillow(content) == ("JPEG", "RGB", (width, height), 1)


def outcome(content: bytes) -> tuple[str, ...] | bytes:
    try:
        return decode_image(content, "a.jpg").tobytes()
    except DataError as error:
        return error.what, str(error.seen), str(error.expected), str(error.hint)


def test_pixels_and_errors_are_those_of_the_longer_way(monkeypatch: pytest.MonkeyPatch) -> None:
    files = damaged_headers(seed=2, count=1500)
    outcomes = [outcome(content) for content in files]
    monkeypatch.setattr(images, "is_plain_jpeg", lambda _: False)
    assert outcomes == [outcome(content) for content in files]
    assert sum(isinstance(one, bytes) for one in outcomes) > 200
    assert sum(isinstance(one, tuple) for one in outcomes) > 200
