from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sources.trees.photos import write_photos

from fastssl.errors import DataError, UsageError
from fastssl.shards import pack, read_samples
from fastssl.sources.classes import ClassesSource


def labels(source: ClassesSource) -> dict[str, int | None]:
    return {reference: source.read(reference).label for reference in source.references()}


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


def test_opening_looks_at_the_top_and_for_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path, *(f"class{number}/1.jpg" for number in range(20)))
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    ClassesSource(tmp_path)
    assert len(listed) == 3
    listed.clear()
    assert ClassesSource.recognise(tmp_path)
    assert len(listed) <= 6


@pytest.mark.parametrize(
    ("names", "recognised"),
    [
        (["cat/1.jpg", "dog/1.jpg"], True),
        (["000/000_0.png", "007/007_1.png", "README.txt"], True),
        (["train/cat/1.jpg", "train/dog/1.jpg", "val/1.jpg"], True),
        (["cat/1.jpg", "dog/1.jpg", "loose.jpg"], False),
        (["cat/1.jpg"], False),
        (["cat/1.jpg", "dog/puppy/1.jpg"], False),
        (["train/1.jpg", "val/1.jpg"], False),
        (["1.jpg", "2.jpg"], False),
        (["VOC2007/JPEGImages/1.jpg", "VOC2007/Annotations/1.png"], False),
        ([], False),
    ],
)
def test_the_layout_is_found_out_from_the_tree(tmp_path: Path, names: list[str], recognised: bool) -> None:
    assert ClassesSource.recognise(write_photos(tmp_path, *names)) == recognised


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    source = ClassesSource(write_photos(tmp_path, "cat/1.jpg", "dog/1.jpg"))
    (tmp_path / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/1\.jpg"):
        source.read("cat/1.jpg")
    assert source.read("dog/1.jpg").label == 1


def test_a_tree_packs_with_its_classes_and_licence(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "3/a.jpg", "5/b.jpg")
    manifest = pack(ClassesSource(tmp_path / "photos", licence="CC-BY-4.0"), tmp_path / "out", size=8)
    assert (manifest.licence, manifest.layout, manifest.domain) == ("CC-BY-4.0", "classes", "real")
    samples = list(read_samples(tmp_path / "out"))
    assert [(sample.key, sample.label) for sample in samples] == [("3__a", 3), ("5__b", 5)]
    assert np.abs(samples[0].image.astype(int) - [255, 0, 0]).max() < 8
