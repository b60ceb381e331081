"""The annotations of a PASCAL VOC devkit (Everingham et al., IJCV 2010): splits, classes of photos, boxes of objects.

VOCdevkit/VOC{2007,2012}/ImageSets/Main/SPLIT.txt             one ID per line
VOCdevkit/VOC{2007,2012}/ImageSets/Main/CLASS_SPLIT.txt       ID and 1, -1, or 0 where all objects are difficult
VOCdevkit/VOC{2007,2012}/Annotations/ID.xml                   objects, with boxes
VOCdevkit/VOC{2007,2012}/JPEGImages/ID.jpg
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fastssl.errors import DataError, UsageError
from fastssl.sources.lists import numbered_lines
from fastssl.sources.regular import is_regular, read_file
from fastssl.sources.voc import year_places

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The classes of 2007 and 2012, in the order of their tables."""

Year = Literal["VOC2007", "VOC2012"]
_UNPACK = "VOC's archives of trainval and of test are both needed, unpacked into one folder or side by side"
_LABELS = {"1": 1, "0": 0, "-1": -1}
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """An object of a photo."""

    name: str
    """Its class, one of `VOC_CLASSES`."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels from 0; the pixels x2 and y2 belong to it. A file counts from 1."""
    difficult: bool
    truncated: bool


def chosen_classes(names: str, where: str) -> tuple[str, ...]:
    """The classes that an option names, separated by commas, in the order of `VOC_CLASSES`; `all` are all of them.

    Raises:
        UsageError: VOC has no such class.
    """
    chosen = VOC_CLASSES if names == "all" else tuple(name.strip() for name in names.split(","))
    if unknown := set(chosen) - set(VOC_CLASSES):
        raise UsageError(
            "VOC has no such class", where=where, seen=", ".join(sorted(unknown)), expected=", ".join(VOC_CLASSES)
        )
    return tuple(name for name in VOC_CLASSES if name in chosen)


class VocDevkit:
    """One year of a devkit.

    Args:
        path: `VOCdevkit`, the folder that holds it or several that archives were unpacked into, or the folder of the
            year. What lies in several places is read as the one year that it is.
        year: which; a folder of one year is taken as it is.

    Raises:
        DataError: the folder does not hold this year.
    """

    def __init__(self, path: str | PathLike[str], year: Year = "VOC2007") -> None:
        assert year in get_args(Year)
        self.path = Path(path)
        years = year_places(self.path)
        places = years.get("") or years.get(year)
        if not places:
            raise DataError(
                "the folder is no devkit of PASCAL VOC",
                where=self.path,
                seen=", ".join(years) if years else "no year of VOC",
                expected=f"{year} with JPEGImages and ImageSets/Main",
            )
        self._places = [self.path / place for place in places]

    def images(self, split: str) -> list[str]:
        """The IDs of a split's photos, in the order of its list.

        Raises:
            DataError: there is no such list, it is damaged or empty, or a photo that it names is not there.
        """
        found = self._identities(split)
        for identity in found:
            self.image_path(identity)
        return found

    def image_path(self, identity: str) -> Path:
        """The file of a photo.

        Raises:
            DataError: it is not there.
        """
        return self._file(f"JPEGImages/{identity}.jpg", "a photo that the devkit lists")

    def labels(self, split: str, name: str) -> NDArray[np.int8]:
        """Whether each photo of a split shows a class, in the order of `images`.

        Returns:
            (N,): 1, -1, or 0 where it shows nothing but objects that are marked as difficult.

        Raises:
            DataError: the file is missing or damaged, it lacks a photo of the split, or none shows the class.
        """
        path = self._file(f"ImageSets/Main/{name}_{split}.txt", "the list of a class")
        found = dict[str, int]()
        for identity, label in _listed(path, 2):
            if label not in _LABELS:
                seen, expected = f"{label} for {identity}", "1, 0 or -1"
                raise DataError("the labels of a class are damaged", where=path, seen=seen, expected=expected)
            found[identity] = _LABELS[label]
        images = self._identities(split)
        if lacking := [identity for identity in images if identity not in found]:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise DataError("labels are missing", where=path, seen=f"none for {lacking[0]}{more}")
        labels = np.array([found[identity] for identity in images], np.int8)
        if not (labels == 1).any():
            what, hint = "no photo of the split shows the class", "leave the class out by --classes"
            raise DataError(what, where=path, expected="a line with 1", hint=hint)
        return labels

    def objects(self, identity: str) -> list[VocObject]:
        """The objects of a photo, in the order of its annotation.

        Raises:
            DataError: the annotation is missing or damaged; 2012's test photos have none.
        """
        path = self._file(f"Annotations/{identity}.xml", "the annotation of a photo")
        try:
            root = ElementTree.fromstring(read_file(path, "the annotation of a photo"))
            return [_object(element) for element in root.iter("object")]
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError("the annotation of a photo is damaged", where=path, seen=str(error)) from error

    def _identities(self, split: str) -> list[str]:
        path = self._file(f"ImageSets/Main/{split}.txt", "the list of a split")
        found = [identity for identity, _ in _listed(path, 1)]
        if not found:
            raise DataError("the list of a split is empty", where=path)
        return found

    def _file(self, name: str, what: str) -> Path:
        """A file of the year, from the first place that has it."""
        paths = [place / name for place in self._places]
        found = next((path for path in paths if is_regular(path)), None)
        if found is None:
            raise DataError(f"{what} is missing", where=paths[0], hint=_UNPACK)
        return found


def _listed(path: Path, columns: int) -> Iterator[tuple[str, str]]:
    """The first and the last column of a list, each photo once."""
    seen = set[str]()
    try:
        for number, line in numbered_lines(path):
            parts, where = line.split(), f"{path}:{number}"
            if len(parts) != columns:
                expected = "one ID" if columns == 1 else "an ID and 1, 0 or -1"
                raise DataError("a list of photos is damaged", where=where, seen=line[:80], expected=expected)
            if parts[0] in seen:
                raise DataError("a list has a photo twice", where=where, seen=parts[0], expected="each photo once")
            seen.add(parts[0])
            yield parts[0], parts[-1]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("a list of photos cannot be read", where=path, seen=str(error)) from error


def _object(element: ElementTree.Element) -> VocObject:
    """Raises a ValueError for what is no object of VOC."""
    name = (element.findtext("name") or "").strip()
    if name not in VOC_CLASSES:
        raise ValueError(f"an object of the class {name!r}, which VOC does not have")
    sides = [element.findtext(f"bndbox/{side}") for side in _SIDES]
    if None in sides:
        raise ValueError(f"a {name} without {_SIDES[sides.index(None)]}")
    x1, y1, x2, y2 = (float(side or "nan") - 1 for side in sides)
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 <= x2 and y1 <= y2):
        raise ValueError(f"a {name} whose box has the sides {sides}")
    return VocObject(name, (x1, y1, x2, y2), _flag(element, "difficult"), _flag(element, "truncated"))


def _flag(element: ElementTree.Element, name: str) -> bool:
    text = element.findtext(name, "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"{name} is {text!r}, where 0 and 1 are known")
    return text == "1"
