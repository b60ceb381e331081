from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastssl.errors import DataError, UsageError
from fastssl.shards import pack, read_samples
from fastssl.sources import FolderSource, open_source
from fastssl.sources.keys import key_of


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (6, 4), "red")).save(path, **options)
    return path


def tree(folder: Path, *names: str) -> FolderSource:
    for name in names:
        save(folder / name)
    return FolderSource(folder)


def test_every_image_below_the_folder_is_found_in_the_order_of_the_paths(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a/b/y.JPG", "a/x.webp", "a.bmp", "c/w.tif", "c/v.TIFF", "a/Z.jpg"]
    source = tree(tmp_path, *names)
    for ignored in (".hidden.jpg", ".git/x.jpg", "notes.txt", "a/.DS_Store", "jpg"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("no image")
    assert list(source.references()) == sorted(names)
    assert {source.key(name) for name in names} == {source.read(name).key for name in names}


def test_opening_a_folder_does_not_list_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    source = FolderSource(tmp_path)
    assert len(listed) == 2
    assert next(source.references()) == "a/1.jpg"
    assert len(listed) == 4


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        FolderSource(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        FolderSource(tmp_path / "missing")


def test_a_folder_has_no_subsets(tmp_path: Path) -> None:
    tree(tmp_path, "train/1.jpg")
    with pytest.raises(UsageError, match="train"):
        FolderSource(tmp_path, subset="train")


def test_pixels_are_those_of_the_file_and_nothing_has_a_class(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    save(tmp_path / "3" / "a.png", Image.fromarray(pixels))
    record = pickle.loads(pickle.dumps(FolderSource(tmp_path))).read("3/a.png")
    np.testing.assert_array_equal(record.image, pixels)
    assert record.depth is record.normal is record.instance is record.camera is record.label is None


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.jpg"):
        FolderSource(tmp_path).read("a.jpg")


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


def test_a_packed_folder_keeps_its_licence(tmp_path: Path) -> None:
    tree(tmp_path / "photos", "3/a.jpg", "5/b.jpg")
    manifest = pack(FolderSource(tmp_path / "photos", licence="CC-BY-4.0"), tmp_path / "out", size=8)
    assert (manifest.licence, manifest.layout, manifest.source) == ("CC-BY-4.0", "folder", "photos")
    assert [(sample.key, sample.label) for sample in read_samples(tmp_path / "out")] == [("3__a", None), ("5__b", None)]
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
