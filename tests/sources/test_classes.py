from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sources.trees.photos import write_photos

from fastssl.errors import DataError, UsageError
from fastssl.shards import PassedOver, pack, read_samples
from fastssl.sources import open_source
from fastssl.sources.classes import ClassesSource


def labels(source: ClassesSource) -> dict[str, int | None]:
    return {reference: source.read(reference).class_index for reference in source.references()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.jpg", "dog/1.jpg", "ant/1.jpg", "cat/2.jpg"], [0, 1, 1, 2]),
        (["cat/1.jpg", "dog/puppy/1.jpg", "dog/2.jpg"], [0, 1, 1]),
        (["7/a.jpg", "10/a.jpg", "007a/a.jpg"], [0, 1, 2]),
        (["7/a.jpg", "10/a.jpg", "0200/a.jpg"], [200, 10, 7]),
        (["7/a.jpg", "07/a.jpg"], [0, 1]),
        (["000/a.jpg", "001/a.jpg", "074/b.jpg"], [0, 1, 74]),
    ],
)
def test_a_class_is_a_folder_and_its_number_is_its_place_or_its_name(
    tmp_path: Path, names: list[str], expected: list[int]
) -> None:
    source = ClassesSource(write_photos(tmp_path, *names))
    assert labels(source) == dict(zip(sorted(names), expected, strict=True))
    assert {source.key(name) for name in names} == {source.read(name).key for name in names}


def test_splits_share_one_numbering(tmp_path: Path) -> None:
    write_photos(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/ant/7.jpg", "val/dog/2.jpg")
    assert labels(ClassesSource(tmp_path)) == {
        "train/cat/1.jpg": 1,
        "train/dog/1.jpg": 2,
        "val/ant/7.jpg": 0,
        "val/dog/2.jpg": 2,
    }
    assert labels(ClassesSource(tmp_path, subset="val")) == {"val/ant/7.jpg": 0, "val/dog/2.jpg": 2}
    assert labels(ClassesSource(tmp_path, subset="train")) == {"train/cat/1.jpg": 1, "train/dog/1.jpg": 2}
    with pytest.raises(UsageError, match="none"):
        ClassesSource(tmp_path / "train", subset="val")


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    assert labels(ClassesSource(write_photos(tmp_path, "train/1.jpg", "car/1.jpg"))) == {
        "car/1.jpg": 0,
        "train/1.jpg": 1,
    }


def test_an_image_outside_of_the_classes_is_an_error_from_the_start(tmp_path: Path) -> None:
    write_photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "loose.jpg")
    with pytest.raises(DataError, match=r"outside(.|\n)*loose\.jpg(.|\n)*--layout folder"):
        ClassesSource(tmp_path)


def test_a_split_without_classes_does_not_stand_in_the_way_of_another(tmp_path: Path) -> None:
    """ImageNet's validation images come in one folder."""
    write_photos(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/ILSVRC2012_val_00000001.JPEG")
    assert labels(ClassesSource(tmp_path, subset="train")) == {"train/cat/1.jpg": 0, "train/dog/1.jpg": 1}
    for subset in (None, "val"):
        with pytest.raises(DataError, match=r"val_00000001(.|\n)*--subset train"):
            ClassesSource(tmp_path, subset=subset)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images"):
        ClassesSource(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        ClassesSource(tmp_path / "missing")


def test_opening_looks_once_into_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path, *(f"n{number:08d}/{other}.jpg" for number in range(20) for other in range(3)))
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    ClassesSource(tmp_path)
    assert len(listed) <= 20 + 5
    listed.clear()
    assert ClassesSource.recognise(tmp_path)
    assert len(listed) <= 6


@pytest.mark.parametrize(
    ("names", "evidence"),
    [
        (["train/cat/1.jpg", "train/dog/1.jpg", "val/dog/1.jpg"], "train and val hold the same folders, such as dog"),
        (["Test/b/1.jpg", "Train/a/1.jpg", "Train/b/1.jpg"], "Test and Train hold the same folders, such as b"),
        (["n01440764/1.JPEG", "n01443537/1.JPEG"], "folders named by WordNet, such as n01440764"),
        (["train/n01440764/1.JPEG", "train/n01443537/1.JPEG", "val/1.JPEG"], "folders named by WordNet"),
        (["cat/1.jpg", "dog/1.jpg"], None),
        (["000/000_0.png", "007/007_1.png"], None),
        (["100CANON/1.jpg", "101CANON/1.jpg"], None),
        (["cat/1.jpg", "dog/1.jpg", "loose.jpg"], None),
        (["cat/1.jpg"], None),
        (["train/1.jpg", "val/1.jpg"], None),
        (["1.jpg", "2.jpg"], None),
        ([], None),
    ],
)
def test_only_what_can_be_nothing_else_is_found_out(tmp_path: Path, names: list[str], evidence: str | None) -> None:
    found = ClassesSource.recognise(write_photos(tmp_path, *names))
    assert (found or "").startswith(evidence or "")
    assert (found is None) == (evidence is None)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["100CANON/IMG_1.JPG", "101CANON/IMG_1.JPG"], r"100CANON, 101CANON(.|\n)*--layout classes"),
        (["2019/a.jpg", "2020/b/c.jpg"], r"2019, 2020/b(.|\n)*--layout folder"),
        (["train/cat/1.jpg", "val/1.jpg"], r"may be classes or may not"),
        (["scans/left/1.png", "scans/depth/1.png"], r"label planes(.|\n)*scans/depth"),
    ],
)
def test_trees_in_doubt_are_asked_about(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_source(write_photos(tmp_path, *names))
    assert len(list(open_source(tmp_path, "folder").references())) == len(names)


@pytest.mark.parametrize("names", [["a.jpg", "cat/1.jpg", "dog/1.jpg"], ["DCIM/100CANON/1.jpg", "DCIM/101CANON/2.jpg"]])
def test_photos_that_can_be_nothing_else_are_photos(tmp_path: Path, names: list[str]) -> None:
    assert open_source(write_photos(tmp_path, *names)).layout == "folder"


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("Train", "Val"), ("training", "testing")])
def test_folders_of_splits_are_never_classes(tmp_path: Path, one: str, other: str) -> None:
    write_photos(tmp_path, *(f"{split}/{name}/1.jpg" for split in (one, other) for name in ("cat", "dog")))
    for source in (ClassesSource(tmp_path), ClassesSource(tmp_path, subset=other)):
        assert source.classes == {"cat": 0, "dog": 1}
        assert labels(source) == {
            f"{split}/{name}/1.jpg": number
            for split in ([other] if source.subset else [one, other])
            for number, name in enumerate(("cat", "dog"))
        }


def test_a_folder_without_images_has_no_number_and_is_counted(tmp_path: Path) -> None:
    write_photos(tmp_path, "alpha/1.jpg", "zeta/1.jpg")
    (tmp_path / "@eaDir" / "deep").mkdir(parents=True)
    source = ClassesSource(tmp_path)
    assert source.classes == {"alpha": 0, "zeta": 1}
    assert source.passed_over() == {
        "empty folders": PassedOver(count=1, first=["@eaDir/deep"]),
        "folders of no class, for they hold no image": PassedOver(count=1, first=["@eaDir"]),
    }


def test_a_split_of_another_form_is_refused_and_does_not_number(tmp_path: Path) -> None:
    """Tiny ImageNet has a folder `images` in each class, and another one, without classes, in val."""
    write_photos(tmp_path, "train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG", "val/images/val_0.JPEG")
    source = ClassesSource(tmp_path, subset="train")
    assert source.classes == {"n01": 0, "n02": 1}
    assert source.passed_over() == {"folders of other splits": PassedOver(count=1, first=["val"])}
    for subset in (None, "val"):
        with pytest.raises(DataError, match=r"outside of the folders of classes(.|\n)*val/images"):
            ClassesSource(tmp_path, subset=subset)


def test_splits_that_share_no_class_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path, "train/n01/1.jpg", "train/n02/1.jpg", "val/0/1.jpg", "val/1/1.jpg")
    for subset in (None, "train", "val"):
        with pytest.raises(DataError, match=r"share no class(.|\n)*n01, n02; val: 0, 1"):
            ClassesSource(tmp_path, subset=subset)


def test_folders_beside_splits_are_refused_if_they_hold_images(tmp_path: Path) -> None:
    write_photos(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg")
    (tmp_path / "docs").mkdir()
    assert ClassesSource(tmp_path).classes == {"cat": 0}
    write_photos(tmp_path, "docs/scan.png")
    with pytest.raises(DataError, match="others: docs"):
        ClassesSource(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    source = ClassesSource(write_photos(tmp_path, "cat/1.jpg", "dog/1.jpg"))
    (tmp_path / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/1\.jpg"):
        source.read("cat/1.jpg")
    assert source.read("dog/1.jpg").class_index == 1


def test_a_tree_packs_with_its_classes_and_licence(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "3/a.jpg", "5/b.jpg")
    manifest = pack(ClassesSource(tmp_path / "photos", licence="CC-BY-4.0"), tmp_path / "out", size=8)
    assert (manifest.licence, manifest.layout, manifest.domain) == ("CC-BY-4.0", "classes", "real")
    samples = list(read_samples(tmp_path / "out"))
    assert [(sample.key, sample.class_index) for sample in samples] == [("3__a", 3), ("5__b", 5)]
    assert np.abs(samples[0].image.astype(int) - [255, 0, 0]).max() < 8


def test_numbers_that_cannot_be_kept_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photos(tmp_path, "1/a.png", "01/a.png", "5/a.png")
    assert ClassesSource(tmp_path).classes == {"01": 0, "1": 1, "5": 2}
    assert "3 of 3 folders of classes have numbers for names" in caplog.text
