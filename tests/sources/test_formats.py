"""Which endings are images here, and what a file is called that is none."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from fastssl.errors import DataError
from fastssl.sources.images import EXTENSIONS, decode_image, read_image, wanting

HEIC = b"\0\0\0\x18ftypheic" + bytes(16)


HAS_HEIF = find_spec("pillow_heif") is not None


@pytest.mark.parametrize("ending", [".jpg", ".JPE", ".jfif", ".png", ".bmp", ".dib", ".tif", ".gif", ".ppm"])
def test_endings_that_pillow_always_reads_want_nothing(ending: str) -> None:
    assert ending.lower() in EXTENSIONS
    assert wanting(ending) is None


@pytest.mark.parametrize(("name", "ending"), [("webp", ".webp"), ("avif", ".avif"), ("jpg_2000", ".jp2")])
def test_endings_that_a_pillow_may_lack_are_either_read_or_wanted(name: str, ending: str) -> None:
    assert (ending in EXTENSIONS) == features.check(name)
    assert (wanting(ending) is None) == features.check(name)


def test_heif_needs_a_plug_in_that_is_named() -> None:
    for ending in (".heic", ".HEIF", ".hif"):
        assert (ending.lower() in EXTENSIONS) == HAS_HEIF
        assert wanting(ending) == (None if HAS_HEIF else "pip install 'fastssl[heif]'")
    assert wanting(".txt") is None


def test_without_the_plug_in_a_heif_photo_is_told_whatever_it_is_called() -> None:
    """In a process of its own, for which the plug-in is not there."""
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from fastssl.sources.images import EXTENSIONS, decode_image, wanting\n"
        "assert '.heic' not in EXTENSIONS\n"
        "assert 'fastssl[heif]' in wanting('.heic')\n"
        f"decode_image({HEIC!r}, 'IMG_1.jpg')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "HEIF" in done.stderr
    assert "pip install 'fastssl[heif]'" in done.stderr


def test_with_the_plug_in_a_heif_photo_is_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    values = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))[..., None].repeat(3, axis=2)
    buffer = BytesIO()
    heif.from_bytes("RGB", (64, 48), values.tobytes()).save(buffer, quality=-1, chroma=444)
    assert np.abs(decode_image(buffer.getvalue(), "a.jpg").astype(int) - values).max() <= 1


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (16, 12), (10, 200, 30)).save(path, "AVIF")
    assert np.abs(read_image(path).astype(int) - [10, 200, 30]).max() <= 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"8BPS" + bytes(50), "Photoshop"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x18ftypisom", "film"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08\0\1\0\1\1\1\x11\0", "lossless"),
        (b"II*\0\xff\xff\xff\xff", "TIFF"),
        (b"MM\0+\0\x08\0\0" + b"\xff" * 8, "TIFF"),
        (b"anything", "no image"),
    ],
)
def test_a_file_that_is_no_image_is_called_what_it_is(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        decode_image(content, "a.jpg")
    assert words in str(caught.value.seen)


def test_libtiff_writes_nothing_to_the_terminal(tmp_path: Path) -> None:
    """Damaged at a hundred places; libtiff's own handlers write to the process's stderr."""
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path, compression="tiff_lzw")
    code = f"""
import random
from fastssl.errors import DataError
from fastssl.sources.images import decode_image
content, failed = open({str(path)!r}, "rb").read(), 0
for seed in range(100):
    damaged, rng = bytearray(content), random.Random(seed)
    for _ in range(4):
        damaged[rng.randrange(len(damaged))] ^= 255
    try:
        decode_image(bytes(damaged), "a.tif")
    except DataError:
        failed += 1
print(failed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50
    assert done.stderr == ""
