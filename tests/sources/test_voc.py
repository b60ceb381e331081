from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources.pictures import save
from sources.trees.voc import LISTS, write_tree

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.shards import pack, read_samples
from fastssl.sources.classes import ClassesSource
from fastssl.sources.voc import VocSource


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_tree(tmp_path)


def photos(year: str, *names: str) -> list[str]:
    return [f"{year}/JPEGImages/{name}.jpg".removeprefix("/") for name in names]


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
    assert record.class_index is record.depth is None
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


ARCHIVES = ("VOCtrainval_06-Nov-2007", "VOCtest_06-Nov-2007", "VOCtrainval_11-May-2012")


@pytest.fixture
def archives(devkit: Path, tmp_path: Path) -> Path:
    """The same files, each archive unpacked into a folder of its own."""
    root = tmp_path / "VOC"
    trainval, test, later = (root / name / "VOCdevkit" for name in ARCHIVES)
    shutil.copytree(devkit / "VOC2007", trainval / "VOC2007")
    shutil.copytree(devkit / "VOC2012", later / "VOC2012")
    for part in (f"JPEGImages/{LISTS['VOC2007']['test'][0]}.jpg", "ImageSets/Main/test.txt"):
        (test / "VOC2007" / part).parent.mkdir(parents=True)
        (trainval / "VOC2007" / part).rename(test / "VOC2007" / part)
    return root


@pytest.mark.parametrize("subset", [None, "train", "val", "trainval", "test"])
def test_archives_side_by_side_are_what_they_would_be_in_one_folder(
    devkit: Path, archives: Path, subset: str | None
) -> None:
    one, apart = VocSource(devkit, subset=subset), VocSource(archives, subset=subset)
    keys = [apart.key(reference) for reference in apart.references()]
    assert sorted(keys) == sorted(one.key(reference) for reference in one.references())
    assert [apart.read(reference).key for reference in apart.references()] == keys
    if subset is None:
        assert keys[:3] == [f"voc2007__{name}" for name in ("000001", "000005", "000012")]
    assert VocSource.recognise(archives) == (
        f"{ARCHIVES[1]}/VOCdevkit/VOC2007 has JPEGImages and ImageSets/Main, and so have 2 more"
    )
    assert apart.passed_over() == {}


@pytest.mark.parametrize(
    "root", ["VOCdevkit", "VOCdevkit2007", "VOCtrainval_06-Nov-2007/VOCtrainval_06-Nov-2007/VOCdevkit", "voc"]
)
def test_folders_as_people_name_them(devkit: Path, tmp_path: Path, root: str) -> None:
    (tmp_path / "top" / root).parent.mkdir(parents=True)
    devkit.rename(tmp_path / "top" / root)
    source = VocSource(tmp_path / "top", subset="train")
    assert [source.key(reference) for reference in source.references()] == ["voc2007__000012", "voc2012__2008_000008"]
    assert all(source.read(reference).image.shape == (8, 10, 3) for reference in source.references())


@pytest.mark.parametrize("subset", [None, "trainval"])
def test_a_photo_in_two_places_counts_once_and_the_other_is_told(archives: Path, subset: str | None) -> None:
    shutil.copytree(archives / ARCHIVES[0], archives / "voc_backup")
    source = VocSource(archives, subset=subset)
    keys = [source.key(reference) for reference in source.references()]
    assert len(set(keys)) == len(keys) == (6 if subset is None else 4)
    (reason, passed), *others = source.passed_over().items()
    assert (reason, passed.count, others) == ("photos that another place of their year has too", 2, [])
    assert passed.first[0] == "voc_backup/VOCdevkit/VOC2007/JPEGImages/000005.jpg"


def test_a_listed_photo_that_no_place_has_is_named(archives: Path) -> None:
    (archives / ARCHIVES[0] / "VOCdevkit/VOC2007/JPEGImages/000005.jpg").unlink()
    source = VocSource(archives, subset="val")
    first, *_ = source.references()
    with pytest.raises(DataError) as caught:
        source.read(first)
    assert caught.value.where == archives / ARCHIVES[0] / "VOCdevkit/VOC2007/JPEGImages/000005.jpg"


def test_what_is_no_part_of_the_dataset_is_counted(devkit: Path) -> None:
    for name in ("VOCcode/VOCinit.m", "viewanno.m", "devkit_doc.pdf", "VOC2012/ImageSets/Action/jumping_train.txt"):
        (devkit / name).parent.mkdir(exist_ok=True)
        (devkit / name).touch()
    save(devkit / "VOC2012/SegmentationClass/2009_000009.png", Image.new("P", (10, 8)))
    assert VocSource(devkit).passed_over() == VocSource(devkit, subset="test").passed_over() == {}
    save(devkit / "VOC2012/SegmentationClassAug/2009_000009.png", Image.new("L", (10, 8)))
    (devkit / "VOC2012" / "JPEGImages" / "2009_000009.txt").touch()
    (devkit / "VOC2007" / "Annotations" / ".DS_Store").touch()
    counts = {reason: (passed.count, passed.first) for reason, passed in VocSource(devkit).passed_over().items()}
    assert counts == {
        "files ending in .png": (1, ["VOC2012/SegmentationClassAug/2009_000009.png"]),
        "files ending in .txt": (1, ["VOC2012/JPEGImages/2009_000009.txt"]),
        "hidden files and folders": (1, ["VOC2007/Annotations/.DS_Store"]),
    }


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf000012\r\n\r\n", b"\n 000012 \n\n", b"000012\n000012\n"])
def test_a_list_is_read_as_editors_leave_it(devkit: Path, content: bytes) -> None:
    (devkit / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    assert list(VocSource(devkit / "VOC2007", subset="train").references()) == photos("", "000012")


def test_a_list_of_one_class_is_not_taken_for_one_of_photos(devkit: Path) -> None:
    (devkit / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_text("000005 -1\n000012  1\n")
    with pytest.raises(DataError, match=r"train\.txt:1(.|\n)*000005 -1"):
        VocSource(devkit, subset="train")


def test_a_fault_of_the_machine_stays_one(devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fastssl.sources.lists.open_regular", failing)
    with pytest.raises(DataError) as caught:
        VocSource(devkit, subset="train")
    assert machine_fault(caught.value) is not None


def test_it_is_recognised(devkit: Path) -> None:
    for path in (devkit, devkit.parent, devkit / "VOC2007"):
        assert VocSource.recognise(path)
        assert not ClassesSource.recognise(path)
    for path in (devkit / "VOC2007" / "JPEGImages", devkit / "missing"):
        assert not VocSource.recognise(path)


def test_it_packs(devkit: Path, tmp_path: Path) -> None:
    manifest = pack(VocSource(devkit, subset="trainval"), tmp_path / "out", size=8)
    assert (manifest.layout, manifest.domain, manifest.samples) == ("voc", "real", 4)
    assert [(sample.key, sample.class_index) for sample in read_samples(tmp_path / "out")] == [
        (f"{year}__{name}", None)
        for year, name in (
            ("voc2007", "000005"),
            ("voc2007", "000012"),
            ("voc2012", "2008_000002"),
            ("voc2012", "2008_000008"),
        )
    ]
