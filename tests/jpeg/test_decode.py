"""Oracle: libjpeg-turbo, by Pillow and by `simplejpeg`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fastssl.jpeg import begin_and_end_alike, decode_image, decode_windows
from fastssl.jpeg.frame import frame_of
from fastssl.shards import JPEG, ShardSet

Pixels = NDArray[np.uint8]

REAL = Path(__file__).parents[2] / "shards" / "sample" / "real_val"


def picture(seed: int, height: int, width: int, kind: str = "noise") -> Pixels:
    """Noise, all colours at their ends, or large shapes with soft borders."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ends = (rng.random((height, width, 3)) < 0.5).astype(np.uint8) * np.uint8(255)
    if kind == "ends":
        return ends
    return np.asarray(Image.fromarray(ends).filter(ImageFilter.GaussianBlur(3)))


def encoded(pixels: Pixels, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 95, "subsampling": "4:2:0"} | options)
    return file.getvalue()


def by_libjpeg(jpeg: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def decoded(jpeg: bytes) -> Pixels | None:
    """By a frame that was met before."""
    frame_of(jpeg)
    return decode_image(jpeg)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(16, 70),
    width=st.integers(16, 300),
    kind=st.sampled_from(["noise", "ends", "shapes"]),
    quality=st.integers(1, 100),
    optimised=st.booleans(),
)
@example(seed=0, height=16, width=256, kind="noise", quality=100, optimised=False)
@example(seed=0, height=17, width=257, kind="ends", quality=1, optimised=True)
def test_pixels_are_those_of_libjpeg(
    seed: int, height: int, width: int, kind: str, quality: int, optimised: bool
) -> None:
    """Of all sizes, also those that end within a block, and with the longest codes and the coarsest steps."""
    jpeg = encoded(picture(seed, height, width, kind), quality=quality, optimize=optimised)
    np.testing.assert_array_equal(decoded(jpeg), by_libjpeg(jpeg))


@settings(deadline=None, max_examples=150)
@given(data=st.data(), height=st.integers(16, 50), width=st.integers(16, 50))
def test_every_window_is_the_image_s_part(data: st.DataObject, height: int, width: int) -> None:
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    corners = np.array([(data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))) for _ in "abc"])
    jpegs = [encoded(picture(seed, height, width)) for seed in range(3)]
    out = np.full((3, h, w, 3), 77, np.uint8)
    frame_of(jpegs[0])
    streams = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]
    assert decode_windows(streams, (height, width), corners, out) == []
    for jpeg, (top, left), window in zip(jpegs, corners, out, strict=True):
        np.testing.assert_array_equal(window, by_libjpeg(jpeg)[top : top + h, left : left + w])


def test_real_photos_are_decoded_here_but_for_the_first_of_a_header() -> None:
    shards = ShardSet(REAL)
    jpegs, (height, width) = [shards.member(number, JPEG) for number in range(12)], shards.image_size
    out = np.empty((12, height, width, 3), np.uint8)
    corners = np.zeros((12, 2), np.int64)
    decode_windows(jpegs, (height, width), corners, out)
    assert decode_windows(jpegs, (height, width), corners, out) == []
    for jpeg, pixels in zip(jpegs, out, strict=True):
        np.testing.assert_array_equal(pixels, simplejpeg.decode_jpeg(jpeg, "RGB"))


def with_restarts(jpeg: bytes) -> bytes:
    """A definition of restart intervals in front of the frame; it is of no use that there are none."""
    return jpeg[:2] + b"\xff\xdd\0\4\0\1" + jpeg[2:]


def in_another_order(jpeg: bytes) -> bytes:
    """The colours by other numbers than JFIF's, which changes nothing."""
    return jpeg.replace(bytes((1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1)), bytes((1, 0x22, 0, 9, 0x11, 1, 3, 0x11, 1)))


def twice(jpeg: bytes, marker: int) -> bytes:
    place = jpeg.index(bytes((0xFF, marker)))
    segment = jpeg[place : place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")]
    return jpeg[:place] + segment + jpeg[place:]


PICTURE = picture(0, 40, 56, "shapes")
OTHERS = {
    "colours at full resolution": encoded(PICTURE, subsampling="4:4:4"),
    "colours at half the width": encoded(PICTURE, subsampling="4:2:2"),
    "progressive": encoded(PICTURE, progressive=True),
    "gray": encoded(PICTURE[..., 0]),
    "EXIF": encoded(PICTURE, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    "very narrow": encoded(PICTURE[:, :15]),
    "restarts": with_restarts(encoded(PICTURE)),
    "other numbers": in_another_order(encoded(PICTURE)),
    "two frames": twice(encoded(PICTURE), 0xC0),
    "rest behind a table": encoded(PICTURE).replace(b"\xff\xdb\0\x43", b"\xff\xdb\0\x44\0"),
    "JFIF 2": encoded(PICTURE).replace(b"JFIF\0\1", b"JFIF\0\2"),
    "a scan's header of length 1": encoded(PICTURE).replace(b"\xff\xda\0\x0c", b"\xff\xda\0\1"),
    "no JPEG": b"RIFF" + bytes(700),
    "nothing": b"",
    "two bytes": b"\xff\xd8",
    "a header alone": encoded(PICTURE)[:640],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_are_left_to_libjpeg(kind: str) -> None:
    assert decoded(OTHERS[kind]) is None
    stream, out = np.frombuffer(OTHERS[kind], np.uint8), np.empty((1, 9, 9, 3), np.uint8)
    assert decode_windows([stream], (40, 56), np.zeros((1, 2), np.int64), out) == [0]


def test_a_glance_knows_the_header_and_the_end() -> None:
    """Each byte of either counts; libjpeg is asked about all others."""
    sound, other = encoded(picture(0, 32, 48)), encoded(picture(1, 32, 48), quality=50)
    streams = [np.frombuffer(one, np.uint8) for one in (sound, other, sound[:-1], sound[:20], b"", sound + b"x", sound)]
    assert begin_and_end_alike(streams, (32, 48)) in ([False] * 7, [True, False, False, False, False, False, True])
    assert begin_and_end_alike(streams, (32, 48)) == [True, False, False, False, False, False, True]
    assert begin_and_end_alike(streams, (48, 32)) == [False] * 7
    assert begin_and_end_alike([], (32, 48)) == []
    for k in [*range(sound.index(b"\xff\xda") + 2), -2, -1]:
        changed = bytearray(sound)
        changed[k] ^= 1
        assert begin_and_end_alike([streams[0], np.frombuffer(changed, np.uint8)], (32, 48)) == [True, False]


def test_those_of_another_size_or_header_are_left_too() -> None:
    """Size that is asked for; and the others' headers beside the first one's."""
    jpegs = [encoded(PICTURE), encoded(PICTURE, quality=80), encoded(PICTURE[:38]), encoded(PICTURE[::-1])]
    streams, out = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs], np.empty((4, 9, 9, 3), np.uint8)
    frame_of(jpegs[0])
    assert decode_windows(streams, (40, 56), np.zeros((4, 2), np.int64), out) == [1, 2]
    assert decode_windows(streams, (56, 40), np.zeros((4, 2), np.int64), out) == [0, 1, 2, 3]
    short = [streams[0], streams[0][:1], streams[0][:0]]
    assert decode_windows(short, (40, 56), np.zeros((3, 2), np.int64), out[:3]) == [1, 2]
    assert decode_windows([], (40, 56), np.zeros((0, 2), np.int64), out[:0]) == []


NOISE = encoded(picture(1, 64, 48))


def scan_of(jpeg: bytes) -> int:
    return jpeg.index(b"\xff\xda") + 14


def damaged(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """One or two times a bit or a byte of the scan changed, or a few bytes left out or put in."""
    content = bytearray(jpeg)
    for _ in range(rng.integers(1, 3)):
        at, few = int(rng.integers(scan_of(jpeg), len(content) - 2)), int(rng.integers(1, 4))
        match rng.integers(4):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = rng.integers(256)
            case 2:
                del content[at : at + few]
            case _:
                content[at:at] = rng.choice([rng.bytes(few), b"\xff", b"\xff\0", b"\xff\xd9", b"\xff\xd0"])
    return bytes(content)


@pytest.mark.parametrize(("kind", "quality"), [("noise", 95), ("ends", 50), ("shapes", 95), ("noise", 100)])
def test_what_libjpeg_objects_to_is_never_decoded_here(kind: str, quality: int) -> None:
    """Codes that there are none of, blocks that run over, too many or too few of them.

    Where it does not object, pixels are the same, or coefficients are larger than its vectors take.
    """
    jpeg, rng = encoded(picture(1, 71, 86, kind), quality=quality), np.random.default_rng(quality)
    objections, num_equal, num_beyond = set(), 0, 0
    for _ in range(5000):
        content = damaged(jpeg, rng)
        found = decoded(content)
        try:
            expected = simplejpeg.decode_jpeg(content, "RGB", strict=True)
        except ValueError as error:
            objections.add(re.sub("[0-9]+", "N", str(error)))
            assert found is None, content.hex()
        else:
            assert found is None or np.array_equal(found, expected), content.hex()
            num_equal, num_beyond = num_equal + (found is not None), num_beyond + (found is None)
    assert any("bad Huffman code" in objection for objection in objections)
    assert any("extraneous bytes" in objection for objection in objections)
    assert min(num_equal, num_beyond) > 0


def test_whatever_a_header_says_it_is_as_libjpeg_understands_it() -> None:
    """Bytes changed in markers, lengths, sizes, factors and codes; often enough that sound ones are among them."""
    rng, jpeg = np.random.default_rng(0), encoded(picture(2, 40, 48, "shapes"))
    num_decoded = 0
    for _ in range(5000):
        content = bytearray(jpeg)
        for _ in range(rng.integers(1, 3)):
            content[rng.integers(scan_of(jpeg))] = rng.choice([0, 1, 2, 3, 4, 8, 0xFF, 0xC4, 0xDB, rng.integers(256)])
        found = decoded(bytes(content))
        if found is not None:
            num_decoded += 1
            np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(bytes(content), "RGB", strict=True))
    assert num_decoded > 500


@pytest.mark.parametrize(
    "change",
    [
        lambda jpeg: jpeg[:-2],
        lambda jpeg: jpeg[:-30] + b"\xff\xd9",
        lambda jpeg: jpeg[:-2] + b"\0\xff\xd9",
        lambda jpeg: jpeg[:-2] + b"\xff\xd9\xff\xd9",
        lambda jpeg: jpeg + b"\0",
        lambda jpeg: jpeg[: scan_of(NOISE)] + b"\xff\xd9",
        lambda jpeg: jpeg[: scan_of(NOISE)],
    ],
    ids=["no end", "cut short", "a byte more", "two ends", "a byte behind the end", "no scan", "nothing behind it"],
)
def test_a_scan_that_does_not_end_with_the_stream_is_left_to_libjpeg(change: Any) -> None:
    assert decoded(NOISE) is not None
    assert decoded(change(NOISE)) is None


def test_a_short_stream_gets_no_memory_for_the_pixels_that_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    place = NOISE.index(b"\xff\xc0") + 5
    claimed = NOISE[:place] + b"\xff\xff\xff\xff" + NOISE[place + 4 :]
    assert decoded(claimed) is None  # and its frame is there
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory is asked for"))
    assert decode_image(claimed) is None


def test_a_stream_may_lie_at_the_end_of_memory() -> None:
    """Not a byte behind it is read: the page there would end the process."""
    import ctypes
    import mmap

    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 4 * page)
    libc, address = ctypes.CDLL(None), ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(address + 3 * page, page, 0) == 0
    jpeg = encoded(picture(3, 32, 32, "shapes"))
    whole = np.frombuffer(pages, np.uint8)
    out, corners = np.empty((1, 32, 32, 3), np.uint8), np.zeros((1, 2), np.int64)
    frame_of(jpeg)
    for cut in (0, 1, 2, 9, 200, len(jpeg) - 640):
        part = jpeg[: len(jpeg) - cut]
        stream = whole[3 * page - len(part) : 3 * page]
        stream[:] = np.frombuffer(part, np.uint8)
        assert decode_windows([stream], (32, 32), corners, out) == ([] if cut == 0 else [0])
    np.testing.assert_array_equal(out[0].shape, (32, 32, 3))
    libc.mprotect(address + 3 * page, page, mmap.PROT_READ | mmap.PROT_WRITE)
