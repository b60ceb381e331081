from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sources.trees.voc import LISTS, write_tree

from fastssl.errors import DataError
from fastssl.shards import pack, read_samples
from fastssl.sources.classes import ClassesSource
from fastssl.sources.voc import VocSource


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_tree(tmp_path)


def photos(year: str, *names: str) -> list[str]:
    return [f"{year}/JPEGImages/{name}.jpg" for name in names]


@pytest.mark.parametrize("subset", ["train", "val", "trainval", "test"])
def test_a_subset_is_what_the_lists_of_both_years_say(devkit: Path, subset: str) -> None:
    expected = [path for year, lists in LISTS.items() for path in photos(year, *lists.get(subset, []))]
    source = VocSource(devkit, subset=subset)
    assert (source.subset, list(source.references())) == (subset, expected)


def test_without_a_subset_every_photo_is_taken(devkit: Path) -> None:
    assert list(VocSource(devkit).references()) == [
        *photos("VOC2007", "000001", "000005", "000012"),
        *photos("VOC2012", "2008_000002", "2008_000008", "2009_000009"),
    ]


def test_one_year_and_the_folder_above_have_the_same_keys(devkit: Path) -> None:
    one, both, above = VocSource(devkit / "VOC2007"), VocSource(devkit), VocSource(devkit.parent)
    assert [one.key(reference) for reference in one.references()] == [
        f"voc2007__{n}" for n in ("000001", "000005", "000012")
    ]
    assert [both.key(reference) for reference in both.references()] == [above.key(r) for r in above.references()]
    assert list(VocSource(devkit / "VOC2012", subset="val").references()) == ["JPEGImages/2008_000002.jpg"]


def test_a_photo_has_no_class(devkit: Path) -> None:
    record = VocSource(devkit).read("VOC2007/JPEGImages/000005.jpg")
    assert record.key == "voc2007__000005"
    assert record.label is record.depth is None
    assert np.abs(record.image.astype(int) - [0, 0, 255]).max() <= 2


def test_a_subset_that_is_not_there_is_an_error(devkit: Path) -> None:
    with pytest.raises(DataError, match=r"subset test(.|\n)*VOC2012(.|\n)*test\.txt"):
        VocSource(devkit / "VOC2012", subset="test")
    with pytest.raises(DataError, match="no photos of PASCAL VOC"):
        VocSource(devkit / "VOC2012" / "JPEGImages")


def test_listed_photos_that_are_missing_or_damaged_are_named(devkit: Path) -> None:
    source = VocSource(devkit, subset="trainval")
    (devkit / "VOC2007" / "JPEGImages" / "000005.jpg").unlink()
    (devkit / "VOC2007" / "JPEGImages" / "000012.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("000005", "000012"):
        with pytest.raises(DataError, match=name):
            source.read(f"VOC2007/JPEGImages/{name}.jpg")


def test_a_damaged_list_is_named(devkit: Path) -> None:
    (devkit / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match=r"Main/train\.txt"):
        VocSource(devkit, subset="train")


def test_it_is_recognised(devkit: Path) -> None:
    for path in (devkit, devkit.parent, devkit / "VOC2007"):
        assert VocSource.recognise(path)
        assert not ClassesSource.recognise(path)
    for path in (devkit / "VOC2007" / "JPEGImages", devkit / "missing"):
        assert not VocSource.recognise(path)


def test_it_packs(devkit: Path, tmp_path: Path) -> None:
    manifest = pack(VocSource(devkit, subset="trainval"), tmp_path / "out", size=8)
    assert (manifest.layout, manifest.domain, manifest.samples) == ("voc", "real", 4)
    assert [(sample.key, sample.label) for sample in read_samples(tmp_path / "out")] == [
        (f"{year}__{name}", None)
        for year, name in (
            ("voc2007", "000005"),
            ("voc2007", "000012"),
            ("voc2012", "2008_000002"),
            ("voc2012", "2008_000008"),
        )
    ]
