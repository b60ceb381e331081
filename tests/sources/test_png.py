"""PNGs decoded here: every filter with every kind of pixel, and nothing but the pixels that were meant."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit
from numpy.typing import NDArray
from PIL import Image
from sources.pictures import chunk

from fastssl.errors import DataError
from fastssl.sources import png_kernel
from fastssl.sources.images import decode_image, decode_plane
from fastssl.sources.png import plain_png

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = {"L": (8, 0), "P": (8, 3), "I;16": (16, 0), "RGB": (8, 2), "RGB;16": (16, 2)}
"""Bits and kind of colour of each mode (PNG specification, third edition, 11.2.1)."""
BAD_HEADERS = {"wider": (7, 5), "taller": (6, 6), "narrower": (5, 5), "lower": (6, 4), "turned": (5, 6)}


def header(mode: str, width: int, height: int, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *KINDS[mode], 0, 0, interlaced))


def whole(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def packed(rows: bytes | NDArray[np.uint8]) -> bytes:
    return chunk(b"IDAT", zlib.compress(bytes(rows), 1))


def filtered(pixels: NDArray[Any], filters: list[int]) -> NDArray[np.uint8]:
    """The rows of a PNG, each behind its filter, as the specification (9.2) defines them."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"))).view(np.uint8).reshape(height, -1)
    values, pixel = rows.astype(np.int16), rows.shape[1] // width
    left, above, corner = np.zeros_like(values), np.zeros_like(values), np.zeros_like(values)
    left[:, pixel:], above[1:], corner[1:, pixel:] = values[:, :-pixel], values[:-1], values[:-1, :-pixel]
    distance = [np.abs(left + above - corner - neighbour) for neighbour in (left, above, corner)]
    paeth = np.choose(np.argmin(distance, axis=0), [left, above, corner])  # the first of equals
    expected = np.choose(np.array(filters)[:, None], [0 * values, left, above, (left + above) // 2, paeth])
    return np.concatenate([np.array(filters, np.uint8)[:, None], (values - expected).astype(np.uint8)], axis=1)


def picture(mode: str, height: int, width: int) -> NDArray[Any]:
    """Noise, with rows and columns that repeat, so that Paeth's distances are often equal."""
    bits, colour = KINDS[mode]
    rng = np.random.default_rng(height)
    shape = (height, width, 3) if colour == 2 else (height, width)
    values = rng.integers(0, 2**bits, shape, np.uint16)
    values[1::4], values[:, 1::4] = values[::4][: len(values[1::4])], values[:, ::4][:, : values[:, 1::4].shape[1]]
    return values.astype(f"u{bits // 8}")


def assert_decoded(content: bytes, mode: str, expected: NDArray[Any]) -> None:
    """By the code under test, and as Pillow sees it, which only knows the high bytes of 16-bit colour."""
    assert plain_png(content) is not None
    plane = decode_plane(content, "a.png", mode)
    assert plane.dtype == expected.dtype
    assert plane.flags.c_contiguous
    np.testing.assert_array_equal(plane, expected)
    with Image.open(BytesIO(content)) as image:
        np.testing.assert_array_equal(expected >> 8 if mode == "RGB;16" else expected, np.array(image))


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("kind", range(5))
def test_each_filter_is_undone_in_every_row(mode: str, kind: int) -> None:
    pixels = picture(mode, 9, 23)
    assert_decoded(whole(header(mode, 23, 9), packed(filtered(pixels, [kind] * 9))), mode, pixels)


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("width", [1, 7, 14, 15, 16, 22, 23, 64, 101])
def test_filters_are_undone_in_more_rows_than_are_undone_together(mode: str, width: int) -> None:
    pixels = picture(mode, 150, width)
    filters = [*[4] * 70, *[2] * 3, *np.random.default_rng(1).integers(0, 5, 77).tolist()]
    assert_decoded(whole(header(mode, width, 150), packed(filtered(pixels, filters))), mode, pixels)


@given(st.data())
def test_any_picture_comes_back_from_any_filters_and_any_chunks(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(sorted(KINDS)))
    bits, colour = KINDS[mode]
    height, width = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 7)))
    shape = (height, width, 3) if colour == 2 else (height, width)
    pixels = data.draw(arrays(np.dtype(f"u{bits // 8}"), shape))
    filters = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    stream = zlib.compress(filtered(pixels, filters).tobytes(), data.draw(st.integers(0, 9)))
    size = data.draw(st.integers(1, len(stream)))
    parts = [chunk(b"IDAT", stream[start : start + size]) for start in range(0, len(stream), size)]
    assert_decoded(whole(header(mode, width, height), *parts), mode, pixels)


def test_the_nearest_neighbour_is_that_of_paeths_rule_in_all_cases() -> None:
    nearest = png_kernel._nearest

    def differing() -> int:
        count = 0
        for left in range(256):
            for up in range(256):
                for corner in range(256):
                    estimate = left + up - corner
                    to_left, to_up, to_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
                    if to_left <= to_up and to_left <= to_corner:
                        expected = left
                    elif to_up <= to_corner:
                        expected = up
                    else:
                        expected = corner
                    count += nearest(np.int16(left), np.int16(up), np.int16(corner)) != expected
        return count

    assert njit(differing)() == 0


@pytest.mark.parametrize("kind", range(5, 256))
def test_a_filter_that_does_not_exist_is_an_error(kind: int) -> None:
    rows = filtered(picture("RGB", 5, 6), [4] * 5)
    rows[3, 0] = kind
    with pytest.raises(DataError, match=rf"filter is {kind},"):
        decode_plane(whole(header("RGB", 6, 5), packed(rows)), "a.png", "RGB")


@pytest.mark.parametrize(("width", "height"), BAD_HEADERS.values(), ids=BAD_HEADERS)
@pytest.mark.parametrize("mode", KINDS)
def test_pixels_that_are_not_as_many_as_the_header_says_are_an_error(mode: str, width: int, height: int) -> None:
    """Pillow fills missing rows with zeros, and takes no notice of those that are too many."""
    rows = filtered(picture(mode, 5, 6), [1, 4, 2, 3, 0])
    assert decode_plane(whole(header(mode, 6, 5), packed(rows)), "a.png", mode).shape[:2] == (5, 6)
    with pytest.raises(DataError, match=r"does not decode(.|\n)*header says"):
        decode_plane(whole(header(mode, width, height), packed(rows)), "a.png", mode)


def test_a_damaged_stream_is_an_error_also_where_its_chunk_is_right() -> None:
    stream = zlib.compress(filtered(picture("I;16", 5, 6), [4] * 5).tobytes(), 6)
    rng = np.random.default_rng(0)
    for place in range(len(stream)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << int(rng.integers(8))
        for part in (bytes(damaged), stream[:place], rng.bytes(place)):
            with pytest.raises(DataError, match="does not decode"):
                decode_plane(whole(header("I;16", 6, 5), chunk(b"IDAT", part)), "a.png", "I;16")


@pytest.mark.parametrize("size", [(0, 5), (6, 0), (2**32 - 1, 2**32 - 1), (2**31 - 1, 1), (20_000, 20_000)])
def test_sizes_that_no_picture_has_are_an_error_before_any_memory_is_taken(size: tuple[int, int]) -> None:
    content = whole(header("RGB;16", *size), packed(bytes(10)))
    assert plain_png(content) is None
    with pytest.raises(DataError):
        decode_plane(content, "a.png", "RGB;16")
    with pytest.raises(DataError):
        decode_image(content, "a.png")


def test_pillows_limit_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    content = whole(header("L", 6, 5), packed(bytes(35)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14)
    with pytest.raises(DataError, match="exceeds limit of 28 pixels"):
        decode_plane(content, "a.png", "L")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not decode_plane(content, "a.png", "L").any()


def test_what_is_not_decoded_here_is_left_to_pillow() -> None:
    pixels = picture("L", 5, 6)
    size, rows = header("L", 6, 5), filtered(pixels, [2] * 5)
    stream = zlib.compress(rows.tobytes())
    text, frames = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b")), chunk(b"acTL", struct.pack(">II", 1, 0))
    odd = {
        "transparent": whole(size, chunk(b"tRNS", b"\0\1"), packed(rows)),
        "animated": whole(size, frames, packed(rows)),
        "a compressed text": whole(size, text, packed(rows)),
        "a chunk of its own": whole(size, chunk(b"prVt", b"whatever"), packed(rows)),
        "two headers": whole(size, size, packed(rows)),
    }
    for name, content in odd.items():
        assert plain_png(content) is None, name
        np.testing.assert_array_equal(decode_plane(content, name, "L"), pixels)
    colours = picture("RGB;16", 5, 6)
    private = whole(header("RGB;16", 6, 5), chunk(b"prVt", b"whatever"), packed(filtered(colours, [4] * 5)))
    np.testing.assert_array_equal(decode_plane(private, "16 bits of colour", "RGB;16"), colours)
    dot = whole(header("L", 1, 1, interlaced=1), packed(b"\0\7"))
    assert plain_png(dot) is None
    assert decode_plane(dot, "interlaced", "L") == [[7]]
    split = whole(size, chunk(b"IDAT", stream[:9]), chunk(b"tIME", bytes(7)), chunk(b"IDAT", stream[9:]))
    for content in (whole(size), whole(packed(rows)), split):
        assert plain_png(content) is None
        with pytest.raises(DataError):
            decode_plane(content, "a.png", "L")


def test_chunks_that_tell_nothing_about_the_pixels_change_nothing() -> None:
    pixels = picture("RGB", 5, 6)
    told = [chunk(b"gAMA", b"\0\0\xb1\x8f"), chunk(b"sRGB", b"\0"), chunk(b"pHYs", bytes(9))]
    time = chunk(b"tIME", b"\x07\xea\1\1\0\0\0")
    content = whole(header("RGB", 6, 5), *told, packed(filtered(pixels, [3] * 5)), time) + b"behind the end"
    assert_decoded(content, "RGB", pixels)
    np.testing.assert_array_equal(decode_image(content, "a.png"), pixels)


def test_a_text_may_say_how_a_photo_is_turned() -> None:
    """As ImageMagick writes it; a label plane stays as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    text = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n" + f"{len(block):8}\n{block.hex()}\n".encode())
    pixels = picture("RGB", 5, 6)
    content = whole(header("RGB", 6, 5), text, packed(filtered(pixels, [4] * 5)))
    np.testing.assert_array_equal(decode_image(content, "a.png"), np.rot90(pixels, -1))
    np.testing.assert_array_equal(decode_plane(content, "a.png", "RGB"), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_pillow_writes_is_read(mode: str, level: int) -> None:
    pixels = picture(mode, 200, 150)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette(bytes(range(256)) * 3)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    assert_decoded(buffer.getvalue(), mode, pixels)


def test_reading_labels_is_what_loads_numba() -> None:
    code = "import sys, fastssl.sources.images, fastssl.sources.normals; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
