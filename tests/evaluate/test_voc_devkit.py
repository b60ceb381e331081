"""Reading a devkit: what is in its files comes out, and each file that is not as it should be is named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from evaluate.devkits import Photo, Thing, write_devkit
from PIL import Image

from fastssl.errors import DataError, UsageError
from fastssl.evaluate.voc_devkit import VOC_CLASSES, VocDevkit, VocObject, chosen_classes

GRAY = Image.new("RGB", (20, 16), "gray")
PHOTOS = {
    "000009": Photo(GRAY, (Thing("cat", (1, 1, 20, 16), truncated=True), Thing("dog", (2.5, 3, 7, 9.5)))),
    "000005": Photo(GRAY, (Thing("cat", (3, 4, 5, 6), difficult=True),)),
    "000012": Photo(GRAY, (Thing("cat", (3, 4, 5, 6), difficult=True), Thing("cat", (1, 1, 1, 1)))),
    "000013": Photo(GRAY),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_devkit(tmp_path, {"trainval": PHOTOS}, ["cat", "dog", "sofa"])


def test_lists_labels_and_objects(root: Path) -> None:
    for path in (root, root.parent, root / "VOC2007"):
        devkit = VocDevkit(path)
        assert devkit.images("trainval") == list(PHOTOS)
    assert devkit.image_path("000005") == root / "VOC2007/JPEGImages/000005.jpg"
    assert devkit.labels("trainval", "cat").tolist() == [1, 0, 1, -1]
    np.testing.assert_array_equal(devkit.labels("trainval", "dog"), np.array([1, -1, -1, -1], np.int8))
    assert devkit.objects("000009") == [
        VocObject("cat", (0, 0, 19, 15), difficult=False, truncated=True),
        VocObject("dog", (1.5, 2, 6, 8.5), difficult=False, truncated=False),
    ]
    assert [one.difficult for one in devkit.objects("000012")] == [True, False]
    assert devkit.objects("000013") == []


def test_a_year_in_two_places_is_one(tmp_path: Path) -> None:
    trainval = write_devkit(tmp_path / "VOCtrainval_06-Nov-2007", {"trainval": PHOTOS}, ["cat"])
    test = write_devkit(tmp_path / "VOCtest_06-Nov-2007", {"test": {"000001": PHOTOS["000009"]}}, ["cat"])
    devkit = VocDevkit(tmp_path)
    assert devkit.images("test") == ["000001"]
    assert devkit.image_path("000001").is_relative_to(test)
    assert devkit.labels("trainval", "cat").tolist() == [1, 0, 1, -1]
    assert devkit.image_path("000005").is_relative_to(trainval)


def test_classes() -> None:
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert chosen_classes("all", "--classes") == VOC_CLASSES
    assert chosen_classes("sofa, cat", "--classes") == ("cat", "sofa")
    with pytest.raises(UsageError, match=r"no such class(.|\n)*--classes(.|\n)*kat(.|\n)*aeroplane"):
        chosen_classes("kat,sofa", "--classes")


LIST, LABELS, ANNOTATION = "ImageSets/Main/trainval.txt", "ImageSets/Main/cat_trainval.txt", "Annotations/000009.xml"


@pytest.mark.parametrize(
    ("name", "pattern", "instead", "message"),
    [
        (LIST, "", None, r"list of a split is missing(.|\n)*Main/trainval.txt"),
        (LIST, "[^$]+", "\n", r"list of a split is empty(.|\n)*trainval.txt"),
        (LIST, "000005", "1 2", r"damaged(.|\n)*trainval.txt:2(.|\n)*1 2"),
        (LABELS, "", None, r"list of a class is missing(.|\n)*cat_trainval.txt(.|\n)*trainval and of test"),
        (LIST, "000012", "000005", r"photo twice(.|\n)*trainval.txt:3(.|\n)*000005"),
        (LABELS, "000012  1", "000009 -1", r"photo twice(.|\n)*cat_trainval.txt:3(.|\n)*000009"),
        (LABELS, "000005[^$]+", "", r"labels are missing(.|\n)*000005 and 2 more"),
        (LABELS, "000009  1", "000009", r"damaged(.|\n)*cat_trainval.txt:1(.|\n)*000009"),
        (LABELS, "000009  1", "000009 2", r"damaged(.|\n)*cat_trainval.txt(.|\n)*2 for 000009"),
        ("JPEGImages/000005.jpg", "", None, r"photo that the devkit lists is missing(.|\n)*JPEGImages/000005.jpg"),
        (ANNOTATION, "", None, r"annotation of a photo is missing(.|\n)*000009.xml"),
        (ANNOTATION, "</annotation>", "", r"annotation of a photo is damaged(.|\n)*000009.xml"),
        (ANNOTATION, "<truncated>1", "<truncated>2", r"damaged(.|\n)*truncated is '2'"),
        (ANNOTATION, "<name>cat", "<name>kat", r"damaged(.|\n)*'kat', which VOC does not have"),
        (ANNOTATION, "<xmax>20", "<xmax>0", r"damaged(.|\n)*a cat whose box has the sides"),
        (ANNOTATION, "<ymin>1<", "<ymin>up<", r"damaged(.|\n)*up"),
        (ANNOTATION, "<ymin>1<", "<ymin><", r"damaged(.|\n)*a cat whose box"),
        (ANNOTATION, "<xmin>1</xmin>", "", r"damaged(.|\n)*a cat without xmin"),
    ],
)
def test_what_is_wrong_is_named(root: Path, name: str, pattern: str, instead: str | None, message: str) -> None:
    path = root / "VOC2007" / name
    if instead is None:
        path.unlink()
    else:
        text, count = re.subn(pattern, instead, path.read_text(), count=1)
        assert count == 1
        path.write_text(text)
    devkit = VocDevkit(root)
    with pytest.raises(DataError, match=message):
        [devkit.images("trainval"), devkit.labels("trainval", "cat"), devkit.objects("000009")]


def test_a_class_without_photos_and_a_folder_without_the_year(root: Path) -> None:
    with pytest.raises(DataError, match=r"no photo of the split shows the class(.|\n)*sofa_trainval(.|\n)*--classes"):
        VocDevkit(root).labels("trainval", "sofa")
    with pytest.raises(DataError, match=r"no devkit(.|\n)*seen: VOC2007(.|\n)*VOC2012 with"):
        VocDevkit(root, "VOC2012")
    with pytest.raises(DataError, match="no year of VOC"):
        VocDevkit(root / "VOC2007/JPEGImages")
