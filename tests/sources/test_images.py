"""Image files: good ones come out as Pillow shows them, damaged ones are errors, and nothing else ever happens."""

from __future__ import annotations

import base64
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, features
from sources.pictures import chunk, png, save

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources.images import decode_image, decode_plane, read_image, read_plane


def photo(height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """Smooth enough for a JPEG, with some texture."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 2 + y, 128 + 100 * np.sin(x / 9 + y / 5), (x * y) // 40]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return (np.stack(planes, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = BytesIO()
    (image or Image.fromarray(photo())).save(buffer, kind, **options)
    return buffer.getvalue()


def seen_by_pillow(content: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def accepts(content: bytes) -> bool:
    """True if it decodes, or if the error lacks what it should tell; any other exception is a failure of the test."""
    try:
        pixels = decode_image(content, "the file")
    except DataError as error:
        return not (error.where == "the file" and error.seen)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return True


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("JPEG", {"subsampling": sampling, "quality": 85}) for sampling in (0, 1, 2)),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ],
)
def test_pixels_are_those_that_pillow_shows(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    content = encoded(kind, **options)
    (tmp_path / "a.jpg").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), seen_by_pillow(content))


def test_every_kind_of_image_becomes_rgb_of_8_bits() -> None:
    gray16 = Image.fromarray(np.array([[0x1234, 0xFF00]], np.uint16))
    palette = Image.new("RGB", (2, 1), (0, 51, 102)).quantize(4)
    images: dict[str, tuple[str, Image.Image, tuple[int, int, int]]] = {
        "gray": ("PNG", Image.new("L", (2, 1), 70), (70, 70, 70)),
        "gray JPEG": ("JPEG", Image.new("L", (16, 16), 70), (70, 70, 70)),
        "gray of 16 bits": ("PNG", gray16, (0x12, 0x12, 0x12)),
        "gray TIFF of 16 bits": ("TIFF", gray16, (0x12, 0x12, 0x12)),
        "transparent": ("PNG", Image.new("RGBA", (2, 1), (10, 20, 30, 0)), (255, 255, 255)),
        "opaque": ("PNG", Image.new("RGBA", (2, 1), (10, 20, 30, 255)), (10, 20, 30)),
        "opaque gray": ("PNG", Image.new("LA", (2, 1), (9, 255)), (9, 9, 9)),
        "bits": ("PNG", Image.new("1", (2, 1), 1), (255, 255, 255)),
        "palette": ("PNG", palette, (0, 51, 102)),
        "CMYK": ("JPEG", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (kind, image, expected) in images.items():
        pixels = decode_image(encoded(kind, image), name)
        assert (pixels.dtype, pixels.shape) == (np.uint8, (*image.size[::-1], 3)), name
        assert np.abs(pixels[0, 0].astype(int) - expected).max() <= 2, name


def test_colour_of_16_bits_keeps_its_high_bytes(tmp_path: Path) -> None:
    """All of them, where it is a label plane."""
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png(values))
    np.testing.assert_array_equal(read_image(path), (values >> 8).astype(np.uint8))
    plane = read_plane(path, "RGB;16", (7, 5))
    assert plane.dtype == np.uint16
    np.testing.assert_array_equal(plane, values)
    with pytest.raises(DataError, match=r"mode RGB;16\n(.|\n)*mode RGB$"):
        read_plane(path, "RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(BytesIO(content)) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = decode_image(content, "a")
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous
    assert pixels.shape[:2] == ((64, 96) if orientation < 5 else (96, 64))


def test_orientation_6_is_stored_turned_left() -> None:
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded("JPEG", Image.fromarray(np.rot90(upright)), exif=exif, quality=95)
    assert np.abs(decode_image(content, "a.jpg").astype(int) - upright).max() <= 2


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


# Photographers' programs write all of these, and every viewer shows them.
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "bytes behind the end": lambda jpeg: jpeg + b"appended by a phone" * 50,
    "a second JPEG behind the end": lambda jpeg: jpeg + jpeg,
    "a byte of padding before the end": lambda jpeg: jpeg[:-2] + b"\x7f" + jpeg[-2:],
    "three bytes of padding before the end": lambda jpeg: jpeg[:-2] + b"\0\0\0" + jpeg[-2:],
    "zeros between segments": lambda jpeg: jpeg.replace(b"\xff\xdb", b"\0\0\0\0\xff\xdb", 1),
    "a piece of a colour profile": lambda jpeg: jpeg[:2] + segment(0xE2, b"ICC_PROFILE\0\5\1" + bytes(9)) + jpeg[2:],
    "an EXIF block of nonsense": lambda jpeg: jpeg[:2] + segment(0xE1, b"Exif\0\0" + b"nonsense" * 5) + jpeg[2:],
    "a cut EXIF block": lambda jpeg: jpeg[:2] + segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x09") + jpeg[2:],
    "an index of pictures that is none": lambda jpeg: jpeg[:2] + segment(0xE2, b"MPF\0II*\0zzz") + jpeg[2:],
    "a version of JFIF yet unknown": lambda jpeg: jpeg.replace(b"JFIF\0\1\1", b"JFIF\0\7\1", 1),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_pixels_are_whole_is_used(change: Callable[[bytes], bytes], progressive: bool) -> None:
    jpeg = encoded("JPEG", progressive=progressive)
    changed = change(jpeg)
    assert changed != jpeg
    np.testing.assert_array_equal(decode_image(changed, "a.jpg"), seen_by_pillow(jpeg))


def test_a_jpeg_of_unusual_subsampling_is_used() -> None:
    """Of 24 x 16 pixels, by libjpeg-turbo's `cjpeg -sample 3x1,1x1,1x1`; the TurboJPEG interface refuses it."""
    content = base64.b85decode(
        "|JeWF01!$>Nk#wx0RR9200961|JwjV01yid4h#wq4h;?x5fBp?C>j_R78o%jB^@X_Gd(;xGdMRuNL)@pL{~*OI8bd-S6^ahXlFi6ad~iLcwA"
        "*?WB=O#Lje&I5*QU2FB%#zV?sDWV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`Klo01*fP5C9kh0Wkmq5"
        "di}c0sq7R6#xMN000000000000000000CA|HJ?n5C8)K00000000000000000097VgJMc76AbP0RR910000000000000F81pmYU7ZCvg0RaF"
        "20000000000000931Tp{G01N{G00I#M5dc2`nN(OYQDDVIg%xeM8<N!)3{+S#QD9=MMh4~o*#"
    )
    np.testing.assert_array_equal(decode_image(content, "odd.jpg"), seen_by_pillow(content))


def test_bytes_left_over_by_damage_are_no_padding() -> None:
    jpeg = encoded("JPEG")
    assert not accepts(jpeg[:-2] + bytes(20) + jpeg[-2:])


def coded_pixels(jpeg: bytes) -> range:
    """Offsets of the coded pixels: behind the first start of scan."""
    start = 2
    while jpeg[start + 1] != 0xDA:
        start += 2 + int.from_bytes(jpeg[start + 2 : start + 4])
    return range(start + 2 + int.from_bytes(jpeg[start + 2 : start + 4]), len(jpeg) - 2)


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_pixels_of_a_jpeg_are_noticed(progressive: bool) -> None:
    """Zeroed sectors, as a failing disk leaves them. Pillow by itself takes nearly all of them."""
    jpeg = encoded("JPEG", Image.fromarray(photo(400, 600)), progressive=progressive)
    pixels, rng = coded_pixels(jpeg), random.Random(0)
    damaged = []
    for _ in range(40):
        start = rng.randrange(pixels.start, pixels.stop - 512)
        damaged.append(jpeg[:start] + bytes(512) + jpeg[start + 512 :])
    assert sum(not accepts(content) for content in damaged) >= 34
    assert sum(seen_by_pillow(content).size > 0 for content in damaged) >= 34


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_damage_is_noticed_in_every_kind_of_jpeg(mode: str) -> None:
    jpeg = encoded("JPEG", Image.fromarray(photo(200, 300)).convert(mode))
    pixels = coded_pixels(jpeg)
    middle = (pixels.start + pixels.stop) // 2
    assert accepts(jpeg)
    assert not accepts(jpeg[:middle] + bytes(512) + jpeg[middle + 512 :])


@pytest.mark.parametrize("mode", ["1", "I;16", "L", "P", "RGB", "RGB;16"])
def test_any_damage_to_a_png_is_noticed(tmp_path: Path, mode: str) -> None:
    """Each byte of a file that counts, one after the other: Pillow alone takes about half of these files."""
    colour = photo(10, 12)
    pixels, content = {
        "1": (colour[..., 0] > 99, None),
        "I;16": (colour[..., 0].astype(np.uint16) * 257, None),
        "L": (colour[..., 0], None),
        "P": (np.array(Image.fromarray(colour).quantize(8)), encoded("PNG", Image.fromarray(colour).quantize(8))),
        "RGB": (colour, None),
        "RGB;16": (colour * np.uint16(255), png(colour * np.uint16(255))),
    }[mode]
    content = content or encoded("PNG", Image.fromarray(pixels))
    plane = decode_plane(content, "plane.png", mode, (12, 10))
    assert plane.dtype == pixels.dtype
    np.testing.assert_array_equal(plane, pixels)
    rng = random.Random(0)
    for offset in range(len(content)):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << rng.randrange(8)
        assert not accepts(bytes(damaged)), offset
        with pytest.raises(DataError, match=r"plane\.png"):
            decode_plane(bytes(damaged), "plane.png", mode, (12, 10))


def test_a_png_is_cut_short_wherever_it_is_cut() -> None:
    content = encoded("PNG", Image.fromarray(photo(10, 12)))
    for length in range(len(content)):
        assert not accepts(content[:length])
        with pytest.raises(DataError, match=r"plane\.png"):
            decode_plane(content[:length], "plane.png", "RGB")


def test_damage_to_what_a_png_says_about_itself_does_no_harm() -> None:
    """A private chunk with a wrong CRC, and bytes behind the end."""
    content = encoded("PNG")
    private = chunk(b"prVt", b"whatever")
    odd = content[:33] + private[:-1] + bytes([private[-1] ^ 1]) + content[33:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accepts(content + b"behind")
        assert accepts(content[:33] + private + content[33:])
        assert not accepts(odd)  # Pillow's own choice


def zero_size(kind: str) -> bytes:
    content = bytearray(encoded(kind))
    if kind == "PNG":
        content[16:24] = bytes(8)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = bytes(4)
    return bytes(content)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    return encoded("JPEG", exif=exif)


def with_zeroed_pixels(jpeg: bytes) -> bytes:
    pixels = coded_pixels(jpeg)
    return jpeg[: pixels.start + 200] + bytes(256) + jpeg[pixels.start + 456 :]


ODD_FILES: dict[str, tuple[Callable[[], bytes], bool]] = {
    "empty": (lambda: b"", False),
    "text": (lambda: b"just words\n" * 50, False),
    "zeros": (lambda: bytes(3000), False),
    "the first bytes of a JPEG and nonsense": (lambda: b"\xff\xd8\xff" + b"x" * 500, False),
    "an EPS, which a program would have to draw": (lambda: encoded("EPS"), False),
    "a GIF named .jpg": (lambda: encoded("GIF"), True),
    "CMYK": (lambda: encoded("JPEG", Image.fromarray(photo()).convert("CMYK")), True),
    "16 bits": (lambda: encoded("PNG", Image.fromarray(photo()[..., 0].astype(np.uint16) * 257)), True),
    "floats": (lambda: encoded("TIFF", Image.new("F", (2, 2), 0.5)), False),
    "a JPEG of 0 x 0": (lambda: zero_size("JPEG"), False),
    "a PNG of 0 x 0": (lambda: zero_size("PNG"), False),
    "turned by EXIF": (turned, True),
    "damaged pixels": (lambda: with_zeroed_pixels(encoded("JPEG")), False),
}


@pytest.mark.parametrize(("make", "usable"), ODD_FILES.values(), ids=ODD_FILES)
def test_what_can_be_used_is_used_and_the_rest_is_an_error(
    tmp_path: Path, make: Callable[[], bytes], usable: bool
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(make())
    if usable:
        assert read_image(path).shape in ((64, 96, 3), (96, 64, 3))
        return
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_image(path)
    assert caught.value.where == path
    assert caught.value.seen
    assert str(tmp_path) not in str(caught.value.seen)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.9])
def test_an_image_cut_short_is_an_error(kind: str, fraction: float) -> None:
    content = encoded(kind)
    assert not accepts(content[: int(len(content) * fraction)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jpg"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match=r"missing\n.*nothing\.png"):
        read_plane(tmp_path / "nothing.png", "L")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_nothing_but_a_data_error_ever_escapes(kind: str) -> None:
    """A hundred and fifty random damages: bytes replaced, removed, doubled, anywhere in the file."""
    content, rng = encoded(kind, Image.fromarray(photo(24, 32))), random.Random(kind)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 10])):
            start = rng.randrange(len(damaged))
            length = rng.choice([1, 4, 40])
            damaged[start : start + length] = rng.choice([rng.randbytes(length), b"", b"\xff" * length, bytes(80)])
        accepts(bytes(damaged))


def test_a_decompression_bomb_is_refused_before_it_goes_off(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded("PNG", Image.new("1", (15000, 14000)))
    assert len(bomb) < 50_000
    with pytest.raises(DataError, match="too many pixels") as caught:
        decode_image(bomb, "bomb.png")
    assert "210000000" in str(caught.value.seen)
    # Large images are used up to the limit, and without a warning.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96 - 1)
    assert accepts(encoded("JPEG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96 // 2 - 1)
    assert not accepts(encoded("JPEG"))


def test_a_label_plane_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "depth.png", photo(20, 30)[..., 0])
    with pytest.raises(DataError, match="mode L"):
        read_plane(path, "I;16")
    with pytest.raises(DataError, match="31 x 20"):
        read_plane(path, "L", (31, 20))
    assert read_plane(path, ("1", "L")).dtype == np.uint8
    with pytest.raises(DataError, match="of mode 1 or P"):
        read_plane(path, ("1", "P"))
    path.write_bytes(encoded("JPEG"))
    with pytest.raises(DataError, match="no PNG"):
        read_plane(path, "RGB")


def test_gray_in_float32_is_a_tiff_and_taken_where_it_is_asked_for() -> None:
    metres = np.random.default_rng(0).uniform(0, 1e10, (5, 7)).astype(np.float32)
    content = encoded("TIFF", Image.fromarray(metres))
    np.testing.assert_array_equal(decode_plane(content, "a.tif", ("I;16", "F"), (7, 5)), metres)
    with pytest.raises(DataError, match="no PNG"):
        decode_plane(content, "a.tif", "I;16")


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", photo(20, 30))
    assert read_image(path, (30, 20)).shape == (20, 30, 3)
    with pytest.raises(DataError, match=r"30 x 20(.|\n)*20 x 30") as caught:
        read_image(path, (20, 30))
    assert caught.value.where == path


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), OSError(5, "Input/output error"), ValueError("Insufficient memory (case 4)"),
     OSError("out of memory when reading image file")],
    ids=lambda fault: str(fault) or "MemoryError",
)  # fmt: skip
@pytest.mark.parametrize("place", ["simplejpeg.decode_jpeg", "PIL.Image.open", "PIL.Image.Image.getexif"])
def test_a_fault_of_the_machine_is_not_taken_for_damage(
    monkeypatch: pytest.MonkeyPatch, place: str, fault: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise fault

    content = encoded("JPEG", exif=Image.Exif())  # which a glance would not leave to Pillow without EXIF
    monkeypatch.setattr(place, failing)
    with pytest.raises(DataError) as caught:
        decode_image(content, "a.jpg")
    assert machine_fault(caught.value) is not None


def test_a_fault_of_the_machine_is_not_taken_for_a_damaged_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise MemoryError

    content = encoded("PNG")
    monkeypatch.setattr("fastssl.sources.png.PlainPng.pixels", failing)
    for read in (lambda: decode_plane(content, "a.png", "RGB"), lambda: decode_image(content, "a.png")):
        with pytest.raises(DataError) as caught:
            read()
        assert machine_fault(caught.value) is not None
    with pytest.raises(DataError) as caught:
        decode_image(content[:-20], "a.png")
    assert machine_fault(caught.value) is None


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_a_lack_of_memory_that_a_decoder_calls_damage_is_told_from_it(kind: str) -> None:
    """In a process of its own, with less and less memory to have: none of it is the file's fault."""
    feature = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]
    if not features.check(feature):
        pytest.skip(f"Pillow was built without {feature}")
    code = f"""
import resource
from io import BytesIO
import numpy as np
from PIL import Image
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources.images import decode_image

smooth = np.add.outer(np.arange(1500), np.arange(1500)).astype(np.uint8)
for size in (16, 1500):
    buffer = BytesIO()
    Image.fromarray(smooth[:size, :size]).convert("RGB").save(buffer, {kind!r})
    content = buffer.getvalue()
    if size == 16:
        decode_image(content, "a")
del buffer, smooth
pages = int(open("/proc/self/statm").read().split()[0])
failed = 0
for megabytes in range(1, 60, 3):
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), -1))
    try:
        decode_image(content, "a")
    except DataError as error:
        assert machine_fault(error) is not None, error
        failed += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(failed)
decode_image(content, "a")
try:
    decode_image(content[: len(content) // 2], "a")
except DataError as error:
    assert machine_fault(error) is None, error
else:
    raise AssertionError
"""
    # With these every large block is the system's own, so that none is left over from the time of plenty.
    plain = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **plain})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
