"""Every depth and mode as 8 bits: files written here byte by byte, against the values that they were written from."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features
from sources.pictures import chunk

from fastssl.errors import DataError
from fastssl.sources.images import decode_image

HEIGHT, WIDTH = 3, 16


def ramp(bits: int) -> NDArray[np.int64]:
    """(H, W): from nothing to the most that these bits hold; an odd one too."""
    return np.round(np.linspace(0, 2**bits - 1, WIDTH)).astype(np.int64)[None].repeat(HEIGHT, axis=0)


def shown(values: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """What 8 bits should show of it."""
    return np.asarray(np.round(values * 255 / (2**bits - 1))).astype(np.int64)


def assert_shows(content: bytes, expected: NDArray[Any], within: int = 1) -> None:
    """A gray of (H, W), or colour of (H, W, 3), within a level."""
    pixels = decode_image(content, "a")
    colour = expected if expected.ndim == 3 else expected[..., None].repeat(3, axis=2)
    assert pixels.dtype == np.uint8
    assert pixels.shape == colour.shape
    assert np.abs(pixels.astype(int) - colour).max() <= within


def bits_of(values: NDArray[Any], bits: int) -> bytes:
    """Rows of numbers, the highest bit first, each row padded to whole bytes."""
    flat = values.reshape(len(values), -1).astype(np.uint64)
    spread = (flat[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(spread.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def stored(values: NDArray[Any], bits: int, order: str) -> bytes:
    if bits in (8, 16, 32):
        return (values % 2**bits).astype(f"{order}u{bits // 8}").tobytes()
    return bits_of(values, bits)


def tiff(
    values: NDArray[Any],
    bits: int,
    photometric: int = 1,
    *,
    order: str = "<",
    apart: bool = False,
    deflated: bool = False,
    **tags: int | tuple[int, ...],
) -> bytes:
    """A TIFF (revision 6.0) of one strip a plane; names of further tags are `t` and the number."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    planes = [values[..., k] for k in range(samples)] if apart and samples > 1 else [values]
    strips = [stored(plane, bits, order) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    offsets = tuple(8 + sum(map(len, strips[:k])) for k in range(len(strips)))
    content = b"".join(strips)
    entries: dict[int, int | tuple[int, ...]] = {
        256: width, 257: height, 258: (bits,) * samples, 259: 8 if deflated else 1, 262: photometric, 273: offsets,
        277: samples, 278: height, 279: tuple(map(len, strips)), 284: 2 if apart else 1,
        **{int(name[1:]): value for name, value in tags.items()},
    }  # fmt: skip
    start = 8 + len(content) + len(content) % 2
    beyond, directory = b"", b""
    for tag, value in sorted(entries.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(packed) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond += packed + bytes(len(packed) % 2)
            packed = struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    header = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    count = struct.pack(f"{order}H", len(entries))
    return header + content.ljust(start - 8, b"\0") + count + directory + bytes(4) + beyond


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_of_every_depth_in_a_tiff(bits: int, order: str, deflated: bool) -> None:
    assert_shows(tiff(ramp(bits), bits, order=order, deflated=deflated), shown(ramp(bits), bits))


@pytest.mark.parametrize("width", [16, 15])
def test_gray_of_12_bits_in_a_tiff_is_not_nearly_black(width: int) -> None:
    """An odd width ends in half a byte."""
    assert_shows(tiff(ramp(12)[:, :width], 12), shown(ramp(12)[:, :width], 12))


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_tiff_may_say_that_0_is_white(bits: int, deflated: bool) -> None:
    assert_shows(tiff(ramp(bits), bits, 0, deflated=deflated), 255 - shown(ramp(bits), bits))


COLOURS = {2: (3, "RGB"), 5: (4, "CMYK")}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_in_a_tiff_also_where_its_planes_lie_apart(bits: int, order: str, deflated: bool, apart: bool) -> None:
    red, most = ramp(bits), 2**bits - 1
    colour = np.stack([red, most - red, red // 2], axis=-1)
    assert_shows(tiff(colour, bits, 2, order=order, deflated=deflated, apart=apart), shown(colour, bits))
    ink = np.concatenate([most - colour, 0 * colour[..., :1]], axis=-1)
    assert_shows(tiff(ink, bits, 5, order=order, deflated=deflated, apart=apart), shown(colour, bits))


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize(("bits", "apart"), [(8, False), (16, False), (16, True), (8, True)])
def test_half_transparent_pixels_of_a_tiff_are_half_white(bits: int, deflated: bool, apart: bool) -> None:
    colour, most = ramp(bits)[..., None].repeat(3, axis=2), 2**bits - 1
    alpha = np.full((HEIGHT, WIDTH, 1), round(0.4 * most))
    expected = shown(0.4 * colour + 0.6 * most, bits)
    content = tiff(np.concatenate([colour, alpha], axis=2), bits, 2, deflated=deflated, apart=apart, t338=2)
    assert_shows(content, expected)
    scaled = np.round(0.4 * colour).astype(np.int64)
    content = tiff(np.concatenate([scaled, alpha], axis=2), bits, 2, deflated=deflated, apart=apart, t338=1)
    if apart:
        with pytest.raises(DataError, match="planes lie apart"):
            decode_image(content, "a")
    else:
        assert_shows(content, expected, within=2)  # it was divided by alpha in between


@pytest.mark.parametrize("deflated", [False, True])
def test_gray_with_alpha_in_a_tiff(deflated: bool) -> None:
    gray, alpha = ramp(8), np.full((HEIGHT, WIDTH), 102)
    expected = np.round(0.4 * gray + 0.6 * 255)
    scaled = np.round(0.4 * gray).astype(np.int64)
    assert_shows(tiff(np.stack([gray, alpha], axis=-1), 8, deflated=deflated, t338=2), expected)
    assert_shows(tiff(np.stack([scaled, alpha], axis=-1), 8, deflated=deflated, t338=1), expected, within=2)
    with pytest.raises(DataError, match="cannot be read"):
        decode_image(tiff(np.stack([gray, alpha], axis=-1), 8, deflated=deflated, apart=True, t338=2), "a")


REFUSED = {
    "signed 8 bits": (tiff(ramp(7), 8, t339=2), "signed numbers of 8 bits"),
    "signed 16 bits": (tiff(ramp(15), 16, t339=2), "signed numbers of 16 bits"),
    "signed 16 bits of the other order": (tiff(ramp(15), 16, order=">", t339=2), "signed numbers of 16 bits"),
    "32 bits": (tiff(ramp(16), 32), "unsigned numbers of 32 bits"),
    "signed 32 bits": (tiff(ramp(16), 32, t339=2), "signed numbers of 32 bits"),
    "float": (tiff(ramp(16), 32, t339=3), "floating-point numbers of 32 bits"),
    "10 bits": (tiff(ramp(10), 10), "TIFF of a kind that is not read: bits 10, samples 1, photometric 1"),
    "14 bits": (tiff(ramp(14), 14), "bits 14"),
    "12 bits of colour": (tiff(ramp(12)[..., None].repeat(3, axis=2), 12, 2), "bits 12 12 12"),
    "a sensor's mosaic": (tiff(ramp(16), 16, 32803), "photometric 32803"),
    "YCbCr with less colour": (tiff(ramp(8)[..., None].repeat(3, axis=2), 8, 6, t530=(2, 2)), "fewer pixels of colour"),
    "cut tags": (tiff(ramp(10), 10)[:-20], "TIFF"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_a_tiff_without_a_known_range_is_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        decode_image(content, "a.tif")
    assert words in str(caught.value.seen)


def test_of_several_pages_the_first_is_taken() -> None:
    pages = [Image.fromarray(shade.astype(np.uint8)) for shade in (ramp(8), 255 - ramp(8), ramp(8) // 2)]
    for kind, within in {"TIFF": 0, "GIF": 1, "PNG": 0, "WEBP": 1}.items():
        buffer = BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        pages[0].save(buffer, kind, save_all=True, append_images=pages[1:], **options)
        with Image.open(BytesIO(buffer.getvalue())) as image:
            assert getattr(image, "n_frames", 1) == 3, kind
        assert_shows(buffer.getvalue(), ramp(8), within)


PNG_KINDS = {"gray": (0, 1), "gray and alpha": (4, 2), "colour": (2, 3), "colour and alpha": (6, 4)}


def png(values: NDArray[Any], bits: int, colour: int, *between: bytes) -> bytes:
    """A PNG without filters."""
    rows = [b"\0" + stored(row[None], bits, ">") for row in values]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], len(values), bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "kind"), [(8, kind) for kind in PNG_KINDS] + [(16, kind) for kind in PNG_KINDS])
def test_a_png_of_8_and_16_bits_with_and_without_alpha(bits: int, kind: str) -> None:
    colour, channels = PNG_KINDS[kind]
    most = 2**bits - 1
    values = np.stack([ramp(bits), most - ramp(bits), ramp(bits) // 2][: channels if channels > 2 else 1], axis=-1)
    expected = shown(values, bits)
    if channels in (2, 4):
        alpha = np.full((HEIGHT, WIDTH, 1), round(0.4 * most))
        expected = shown(0.4 * values + 0.6 * most, bits)
        values = np.concatenate([values, alpha], axis=2)
    expected = expected if expected.shape[2] == 3 else expected.repeat(3, axis=2)
    assert_shows(png(values, bits, colour), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_gray_that_a_png_calls_transparent_shows_white(bits: int) -> None:
    """And no other, though 16 bits have many grays that look alike."""
    values = ramp(bits)
    values[:, 1] = values[0, 2] ^ 1
    key = int(values[0, 2])
    expected = np.where(values == key, 255, shown(values, bits))
    assert_shows(png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", key))), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_colour_that_a_png_calls_transparent_shows_white(bits: int) -> None:
    values = np.stack([ramp(bits), 2**bits - 1 - ramp(bits), ramp(bits) // 2], axis=-1)
    values[:, 1] = values[0, 2] ^ 1
    key = values[0, 2]
    expected = np.where((values == key).all(axis=-1, keepdims=True), 255, shown(values, bits))
    assert_shows(png(values, bits, 2, chunk(b"tRNS", struct.pack(">3H", *key))), expected)


def test_a_palette_with_alpha() -> None:
    values = np.arange(WIDTH)[None].repeat(HEIGHT, axis=0) % 4
    palette = np.array([[0, 0, 0], [200, 100, 0], [10, 20, 30], [255, 255, 255]])
    alpha = np.array([255, 102, 0, 255])
    expected = np.round(palette * alpha[:, None] / 255 + 255 - alpha[:, None])[values]
    told = [chunk(b"PLTE", palette.astype(np.uint8).tobytes()), chunk(b"tRNS", alpha.astype(np.uint8).tobytes())]
    for bits in (2, 4, 8):
        assert_shows(png(values, bits, 3, *told), expected)


def bmp(values: NDArray[Any], bits: int, colours: list[tuple[int, int, int]]) -> bytes:
    """A Windows bitmap, version 3; its rows are padded to four bytes and go up."""
    rows = [bits_of(row[None], bits) for row in values[::-1]]
    content = b"".join(row + bytes(-len(row) % 4) for row in rows)
    palette = b"".join(bytes([blue, green, red, 0]) for red, green, blue in colours)
    start = 54 + len(palette)
    size = struct.pack(
        "<IiiHHIIiiII", 40, values.shape[1], len(values), 1, bits, 0, len(content), 0, 0, len(colours), 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + size + palette + content


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize(
    "colours", [[(0, 0, 0), (255, 255, 255)], [(255, 255, 255), (0, 0, 0)], [(9, 9, 9), (1, 2, 3)]]
)
def test_a_bmp_of_two_colours_may_have_more_than_one_bit(bits: int, colours: list[tuple[int, int, int]]) -> None:
    values = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH))
    assert_shows(bmp(values, bits, colours), np.array(colours)[values], within=0)


# Written by OpenJPEG: a ramp of 16 values over the whole range, two rows.
JPEG_2000 = {
    "12 bits": "|4;u>04V?f0000G0000200000000000000G000020000000000009dD0sm3}3;+NC0RR951ONg5TmS?>VE<$QB>(|Ka%"
    "Ew3Wn>^?c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000006zc$|C8U~xCvJ!eG%$HELq|?k34Z*s(i@ZQ!^4a<#(8"
    "w?$#wEFWIU-4<?+R!TzmfRaJlg*#",
    "12 bits, signed": "|4;u>04V?f0000G0000200000000000000G00002000000000000D~u0sm3}3;+NC0RR951ONg5TmS?>VE<$QB>(|Ka%"
    "Ew3Wn>^?c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000006zc$|C8U~xCvJ!eG%$HELq|?k34Z*s(i@ZQ!^4a<#(8"
    "w?$#wEFWIU-4<?+R!TzmfRaJlg*#",
    "8 bits, signed": "|4;u>04V?f0000G0000200000000000000G00002000000000000D;q0sm3}3;+NC0RR951ONg5TmS?>K>uU_B>(|Ka%"
    "Ew3Wn>^?c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000004@Ll|C8T<=m}RPeG%$HELq|?k34Z*s)fr>oWz3PKCNX"
    "{Re%54",
    "4 bits": "|4;u>04V?f0000G0000200000000000000G000020000000000009F50sm3}3;+NC0RR951ONg5TmS?>Apc|lB>(|Ka%"
    "Ew3Wn>^?c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000003HAV|C8S!&<R&0Vn<qmTQ)4P^3MO+",
    "4 bits of colour": "|4;u>051Rl0000G0000200000000000000G00002000000000000RR70RsU60|5d5QUDA90003200aa80smY81VAAFWB"
    "?@q0Yh?SVRU6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE;Rp;015yA0000W00IA#-yqNlS0rLbT7g?OEU@y<fPnwm",
    "16 bits of colour": "|4;u>051Rl0000G0000200000000000000G00002000000000000R#J0S^HI4*>!HQUDA90003200aa80smY81VDiQWB"
    "?@q0Yh?SVRU6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE;Rp;015yA0000|00IA#-}sU630Eb35$ZxLS>id5JaJvBe8}B"
    "XGZHrCcbJ*()+Hk^*y`=ITpyQmyUa}YYZ8%{?A0F!lTJ@y|0`KlRbPOB|Je",
    "9 bits in a box": "0000CYEU2`4GM<}0000KW^{RQYH%_j00000YH%_j0000jYH%`W0000MX=r3}000020000G009UG0000001sntY;pkr00"
    "0005dZ)HqiS$6WB*V8Q2;3b000005C8xG0ssI200000000005C8xG0ssI200000000390RjI~01N;C009611Oxy9|6Bk"
    "BKuG^&03`qcLvm$dbY)~9VtF7>aAj^vP(?=|c4cyNX>V>IGA=bPH2;tQ3IG5A001!n0soWVnE(k_C4CX<LM&P0IgdPXU"
    "8;r4Pn^Vp-#)EnRaIVTbw~f%",
}
WRAPPING = ("16 bits of colour", "9 bits in a box")


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")
@pytest.mark.parametrize("kind", [kind for kind in JPEG_2000 if kind not in WRAPPING])
def test_a_jpeg_2000_image_of_any_depth(kind: str) -> None:
    bits = int(kind.split()[0])
    assert_shows(base64.b85decode(JPEG_2000[kind]), shown(ramp(bits)[:2], bits))


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")
@pytest.mark.parametrize("kind", WRAPPING)
def test_a_jpeg_2000_image_whose_white_pillow_turns_black_is_refused(kind: str) -> None:
    content = base64.b85decode(JPEG_2000[kind])
    with Image.open(BytesIO(content)) as image:
        assert np.array(image)[0, -1].max() == 0  # the reason; once it is gone, these can be read
    with pytest.raises(DataError, match=f"JPEG 2000 image of mode .* with {kind.split()[0]} bits"):
        decode_image(content, "a.jp2")


def test_a_jpeg_of_12_bits_is_refused_by_name() -> None:
    jpeg = base64.b85decode(  # written by libjpeg-turbo
        "|JeWF01!$>Nk#wx0RR9200961|JwjV00IF40RaI50RaI50s;a81OoyB0s;jD1Oo&H1qKEN1qKEN2MGuU2MGrT1_%oX2?`1d3JL}Y3k(Yi3<(Mf"
        "3je_X3k(1V01yEI5di<h02KfM0RR9100000000000000D4*$de7!Uvg0{{R300000000000000DNruD!+5iXv0RR9$06Vp0gnia9D2NtFN8Mus|Je"
    )
    with pytest.raises(DataError, match="a JPEG of 12 bits a sample and 1 channels"):
        decode_image(jpeg, "a.jpg")


def test_four_inks_of_a_jpeg_with_and_without_adobes_mark() -> None:
    """With it 0 is all ink, as libjpeg and Pillow take it; Pillow does so without it too, though 0 may be none."""
    ink = np.stack([ramp(8), 255 - ramp(8), ramp(8) // 2, 0 * ramp(8)], axis=-1).astype(np.uint8).repeat(8, axis=1)
    buffer = BytesIO()
    Image.fromarray(ink.repeat(8, axis=0), "CMYK").save(buffer, "JPEG", quality=100, subsampling=0)
    marked = buffer.getvalue()
    start = marked.index(b"\xff\xee")
    plain = marked[:start] + marked[start + 2 + int.from_bytes(marked[start + 2 : start + 4]) :]
    light = 255 - ink.repeat(8, axis=0)[..., :3].astype(int)
    assert_shows(marked, light, within=6)
    with pytest.raises(DataError, match="four inks without Adobe's mark"):
        decode_image(plain, "a.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_that_pillow_writes(mode: str) -> None:
    colour = np.stack([ramp(8), 255 - ramp(8), ramp(8) // 2], axis=-1).astype(np.uint8)
    if mode in ("1", "L", "LA", "P", "PA"):
        colour = np.where(colour[..., :1] > 127, 255, 0).astype(np.uint8).repeat(3, axis=2)
    if mode == "LAB":
        colour = ramp(8).astype(np.uint8)[..., None].repeat(3, axis=2)  # it cannot hold the strongest colours
    if mode == "LAB":
        colour = ramp(8).astype(np.uint8)[..., None].repeat(3, axis=2)  # it cannot hold the strongest colours
    through = Image.fromarray(colour).convert("P" if mode == "PA" else mode)
    buffer = BytesIO()
    through.convert(mode).save(buffer, "TIFF")
    assert_shows(buffer.getvalue(), colour.astype(int), within=3)


@pytest.mark.parametrize("most", [1, 15, 255, 1023, 4095, 65535])
def test_a_pgm_may_hold_any_range(most: int) -> None:
    values = np.round(np.linspace(0, most, WIDTH)).astype(np.int64)[None].repeat(HEIGHT, axis=0)
    expected = np.round(values * 255 / most)
    plain = f"P2 {WIDTH} {HEIGHT} {most} {' '.join(map(str, values.ravel()))}\n".encode()
    binary = f"P5 {WIDTH} {HEIGHT} {most}\n".encode() + stored(values, 8 if most < 256 else 16, ">")
    for content in (plain, binary):
        assert_shows(content, expected)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif() -> None:
    smooth = ramp(8).astype(np.uint8).repeat(8, axis=0).repeat(4, axis=1)
    buffer = BytesIO()
    Image.fromarray(smooth).save(buffer, "AVIF", quality=100)
    assert_shows(buffer.getvalue(), smooth, within=2)
