from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastssl.errors import DataError, UsageError
from fastssl.shards import pack
from fastssl.sources import FolderSource, open_source
from fastssl.sources.folder import key_of


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (6, 4), "red")).save(path, **options)
    return path


def tree(folder: Path, *names: str) -> FolderSource:
    for name in names:
        save(folder / name)
    return FolderSource(folder)


def test_every_image_below_the_folder_is_found_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a/b/y.JPG", "a/x.webp", "a.bmp", "c/w.tif", "c/v.TIFF", "a/Z.jpg"]
    source = tree(tmp_path, *names)
    for ignored in (".hidden.jpg", ".git/x.jpg", "notes.txt", "a/.DS_Store", "jpg"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("no image")
    assert list(source.references()) == [
        *("a/Z.jpg", "a/b/y.JPG", "a/x.webp", "a/z.jpeg"),
        *("a.bmp", "b.PNG", "c/v.TIFF", "c/w.tif"),
    ]
    assert len(FolderSource(tmp_path)) == len(names)


def test_linked_folders_are_followed_and_loops_refused(tmp_path: Path) -> None:
    save(tmp_path / "disk" / "x.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "disk")
    assert list(FolderSource(tmp_path / "photos").references()) == ["linked/x.jpg"]
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "photos")
    with pytest.raises(DataError, match="link"):
        FolderSource(tmp_path / "photos")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        FolderSource(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        FolderSource(tmp_path / "missing")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/1.jpg", "dog/1.jpg", "ant/1.jpg", "cat/2.jpg"], [0, 1, 1, 2]),
        (["7/a.jpg", "10/a.jpg", "007a/a.jpg"], [0, 1, 2]),
        (["7/a.jpg", "10/a.jpg", "0200/a.jpg"], [200, 10, 7]),
        (["7/a.jpg", "07/a.jpg"], [0, 1]),
        (["cat/1.jpg", "dog/1.jpg", "loose.jpg"], [None] * 3),
        (["cat/1.jpg", "dog/puppy/1.jpg"], [None] * 2),
        (["1.jpg", "2.jpg"], [None] * 2),
    ],
)
def test_classes_are_the_folders_if_all_images_lie_one_folder_down(
    tmp_path: Path, names: list[str], labels: list[int | None]
) -> None:
    source = tree(tmp_path, *names)
    assert [source.read(reference).label for reference in source.references()] == labels


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    save(tmp_path / "a.png", Image.fromarray(pixels))
    record = FolderSource(tmp_path).read("a.png")
    np.testing.assert_array_equal(record.image, pixels)
    assert record.depth is record.normal is record.instance is record.camera is None


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    # Orientation 6: the file holds the picture turned left, to be shown turned right.
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:, :15] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", Image.fromarray(np.rot90(upright)), exif=exif)
    np.testing.assert_array_equal(FolderSource(tmp_path).read("a.png").image, upright)


def test_every_kind_of_image_becomes_rgb_of_8_bits(tmp_path: Path) -> None:
    gray16 = np.array([[0x1234, 0xFF00]], np.uint16)
    images = {
        "gray.png": (Image.new("L", (2, 1), 70), (70, 70, 70)),
        "gray16.png": (Image.fromarray(gray16), (0x12, 0x12, 0x12)),
        "gray16.tif": (Image.fromarray(gray16), (0x12, 0x12, 0x12)),
        "alpha.png": (Image.new("RGBA", (2, 1), (10, 20, 30, 0)), (255, 255, 255)),
        "opaque.png": (Image.new("RGBA", (2, 1), (10, 20, 30, 255)), (10, 20, 30)),
        "graya.png": (Image.new("LA", (2, 1), (9, 255)), (9, 9, 9)),
        "bits.png": (Image.new("1", (2, 1), 1), (255, 255, 255)),
        "palette.png": (Image.new("RGB", (2, 1), (0, 51, 102)).quantize(4), (0, 51, 102)),
        "cmyk.jpg": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, expected) in images.items():
        save(tmp_path / name, image)
        pixels = FolderSource(tmp_path).read(name).image
        assert (pixels.dtype, pixels.shape) == (np.uint8, (*image.size[::-1], 3)), name
        assert np.abs(pixels[0, 0].astype(int) - expected).max() <= 2, name


def test_float_images_have_no_known_range(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", Image.new("F", (2, 2), 0.5))
    with pytest.raises(DataError, match=r"no known range(.|\n)*"):
        FolderSource(tmp_path).read("a.tif")


def encoded(kind: str) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_an_image_cut_short_is_named(tmp_path: Path, kind: str, share: float) -> None:
    content = encoded(kind)
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError) as error:
        FolderSource(tmp_path).read(path.name)
    assert error.value.where == path
    assert error.value.seen
    assert str(tmp_path) not in str(error.value.seen)


@pytest.mark.parametrize("content", [b"just words\n" * 50, bytes(3000), b"\xff\xd8\xff" + b"x" * 500])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg"):
        FolderSource(tmp_path).read("a.jpg")


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("gif"))
    assert FolderSource(tmp_path).read("a.jpg").image.shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.jpg", "a"),
        ("a/abbey/00000001.jpg", "a__abbey__00000001"),
        ("living_room/img-1.jpg", "living_room__img-1"),
        ("Bed Room/IMG 1.JPG", r"bed_room__img_1-[0-9a-f]{16}"),
        ("a.png", r"a-[0-9a-f]{16}"),
        ("a__b.jpg", r"a__b-[0-9a-f]{16}"),
        ("x-0123456789abcdef.jpg", r"x-0123456789abcdef-[0-9a-f]{16}"),
        ("d/" + "n" * 200 + ".jpg", r"n{72}-[0-9a-f]{16}"),
        ("größe.jpg", r"gr__e-[0-9a-f]{16}"),
    ],
)
def test_keys_tell_the_path(path: str, key: str) -> None:
    assert re.fullmatch(key, key_of(path))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a_/b.jpg", "a/_b.jpg"),
        ("a__b.jpg", "a/b.jpg"),
        ("a/b__c.jpg", "a__b/c.jpg"),
        ("a.png", "a.jpg"),
        ("A.jpg", "a.jpg"),
        (f"{key_of('A.jpg')}.jpg", "A.jpg"),
        ("x" * 90 + ".jpg", "x" * 91 + ".jpg"),
    ],
)
def test_paths_that_look_alike_have_different_keys(first: str, second: str) -> None:
    assert key_of(first) != key_of(second)


PATHS = st.from_regex(r"[ab_A/.\-]{1,6}\.(jpg|JPG|png)", fullmatch=True)


@settings(max_examples=120, deadline=None)
@given(PATHS, PATHS)
def test_two_paths_never_have_one_key(first: str, second: str) -> None:
    for path in (first, second, first + "x" * 100, "ü" + second):
        assert re.fullmatch(r"[0-9a-z_-]{1,89}", key_of(path))
    assert (key_of(first) == key_of(second)) == (first == second)


def test_a_packed_folder_keeps_its_licence_and_classes(tmp_path: Path) -> None:
    tree(tmp_path / "photos", "3/a.jpg", "5/b.jpg")
    manifest = pack(FolderSource(tmp_path / "photos", licence="CC-BY-4.0"), tmp_path / "out", size=8)
    assert (manifest.licence, manifest.classes, manifest.layout, manifest.source) == (
        "CC-BY-4.0",
        6,
        "folder",
        "photos",
    )
    assert pack(FolderSource(tmp_path / "photos"), tmp_path / "other", size=8).licence == "unknown"


def test_the_layout_is_found_out_from_the_tree(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.jpg")
    assert isinstance(open_source(tmp_path / "photos"), FolderSource)
    assert isinstance(open_source(str(tmp_path / "photos"), "folder"), FolderSource)


def test_an_unknown_layout_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'folder'"):
        open_source(tmp_path, "foldr")
    with pytest.raises(UsageError, match="one of: "):
        open_source(tmp_path, "zzz")
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "missing")
