from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sources.pictures import save
from sources.trees.photos import write_photos

from fastssl.errors import DataError
from fastssl.shards import pack, read_samples
from fastssl.sources import FolderSource


def tree(folder: Path, *names: str) -> FolderSource:
    return FolderSource(write_photos(folder, *names))


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


def test_pixels_are_those_of_the_file_and_nothing_has_a_class(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    save(tmp_path / "3" / "a.png", pixels)
    record = FolderSource(tmp_path).read("3/a.png")
    np.testing.assert_array_equal(record.image, pixels)
    assert record.depth is record.normal is record.instance is record.camera is record.class_index is None


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = write_photos(tmp_path, "a.jpg") / "a.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.jpg"):
        FolderSource(tmp_path).read("a.jpg")


def test_a_packed_folder_keeps_its_licence(tmp_path: Path) -> None:
    tree(tmp_path / "photos", "3/a.jpg", "5/b.jpg")
    manifest = pack(FolderSource(tmp_path / "photos", licence="CC-BY-4.0"), tmp_path / "out", size=8)
    assert (manifest.licence, manifest.layout, manifest.source) == ("CC-BY-4.0", "folder", "photos")
    assert [(sample.key, sample.class_index) for sample in read_samples(tmp_path / "out")] == [
        ("3__a", None),
        ("5__b", None),
    ]
    assert pack(FolderSource(tmp_path / "photos"), tmp_path / "other", size=8).licence == "unknown"
