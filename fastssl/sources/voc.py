"""Layout `voc`: the photos of PASCAL VOC 2007 and 2012 (Everingham et al., IJCV 2010 and 2015).

    VOCdevkit/VOC{2007,2012}/JPEGImages/ID.jpg
    VOCdevkit/VOC{2007,2012}/ImageSets/Main/{train,val,trainval,test}.txt     one ID per line

A photo shows objects of several classes, so none has a class here; the protocols that evaluate on VOC read its
annotations themselves. The two years have no photo in common: 2012's begin with the year they were taken in, as in
`2008_000001`. The archive of 2007's test photos belongs into the same folder as the others; that of 2012's test has no
annotations, but its photos and list do for training without labels.

Who unpacks each archive into a folder of its own (`VOCtrainval_06-Nov-2007/VOCdevkit/VOC2007` beside
`VOCtest_06-Nov-2007/VOCdevkit/VOC2007`) has one year in two places. They are read as the one that they are: photos and
lists come from all places of a year, and a photo that lies in several counts once.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import DomainName, PassedOver, Tally
from fastssl.sources import census
from fastssl.sources.images import EXTENSIONS, read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names, sorted_images
from fastssl.sources.lists import numbered_lines
from fastssl.sources.opening import checked_subset, first_reference
from fastssl.sources.regular import is_folder, is_regular

SUBSETS = ("train", "val", "trainval", "test")
_YEARS = ("VOC2007", "VOC2012")
_PHOTOS, _LISTS = "JPEGImages", "ImageSets/Main"
_UNPACKED = re.compile(r"voc.*", re.IGNORECASE)
"""Folders that archives were unpacked into: `VOCtrainval_06-Nov-2007`, and such as people name them."""

_KNOWN = (
    rf"{_PHOTOS}/.*({'|'.join(re.escape(extension) for extension in EXTENSIONS)})"
    r"|Annotations/[^/]+\.xml|ImageSets/(Main|Layout|Segmentation|Action)/[^/]+\.txt"
    r"|Segmentation(Class|Object)/[^/]+\.png"
)
"""Files below a year's folder that the dataset consists of."""
_DEVKIT = r"VOCcode/[^/]+|[^/]+\.m|devkit_doc\.pdf"
"""Files beside the years' folders, of the development kit."""

TWICE = "photos that another place of their year has too"


class VocSource:
    """The photos of one year or both; a reference is the path below the folder.

    Args:
        path: `VOCdevkit`, the folder that holds it or several that archives were unpacked into, or the folder of one
            year.
        subset: `train`, `val`, `trainval` or `test`, of every year that has this list; None takes all photos.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no year of VOC, or none has this subset.
    """

    layout: ClassVar[str] = "voc"
    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = False
    licence: str = "check the terms of PASCAL VOC and of Flickr"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """A year's photos and their lists."""
        places = [place for year in year_places(path).values() for place in year]
        if not places:
            return None
        others = f", and so have {len(places) - 1} more" if len(places) > 1 else ""
        return f"{places[0].rstrip('/') or 'it'} has {_PHOTOS} and {_LISTS}{others}"

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, SUBSETS)
        self._years = year_places(self.path)
        first_reference(
            self,
            "photos of PASCAL VOC",
            expected=f"VOC2007 or VOC2012 with JPEGImages and ImageSets/Main{f'/{subset}.txt' if subset else ''}",
        )

    def references(self) -> Iterator[str]:
        """Photos year by year, in the order of the subset's list, or without a subset in that of their names."""
        for places in self._years.values():
            for place, name in self._listed(places) if self.subset else _photos(self.path, places):
                yield f"{place}{_PHOTOS}/{name}"

    def key(self, reference: str) -> str:
        """The year and the photo's number, as in `voc2007__000005`."""
        folder, _, name = reference.partition(f"{_PHOTOS}/")
        year = Path(self.path.absolute(), folder).name
        return key_of(f"{year.lower()}/{name}")

    def read(self, reference: str) -> Record:
        """One photo.

        Raises:
            DataError: it is missing or damaged.
        """
        return Record(key=self.key(reference), image=read_image(self.path / reference))

    def passed_over(self) -> dict[str, PassedOver]:
        """What does not belong to the dataset, and photos that lie in several places of a year, but for the first."""
        tally = Tally()
        places = [place for places in self._years.values() for place in places]
        known = {place: re.compile(f"{re.escape(place)}(?:{_KNOWN})", re.IGNORECASE) for place in places}
        kits = {re.escape(place.removesuffix(f"{year}/")) for year in _YEARS for place in self._years.get(year, ())}
        devkit = re.compile(f"(?:{'|'.join(sorted(kits))})(?:{_DEVKIT})") if kits else None

        def is_used(path: str) -> bool:
            place = next((place for place, pattern in known.items() if pattern.fullmatch(path)), None)
            if place is None:
                return devkit is not None and devkit.fullmatch(path) is not None
            name = path.removeprefix(place)
            before = self._before(place) if name.startswith(f"{_PHOTOS}/") else []
            if any(is_regular(self.path / one / name) for one in before):
                tally.add(TWICE, path)
            return True

        return census.passed_over(self.path, is_used, tally)

    def _before(self, place: str) -> list[str]:
        """The places of the same year that come before one."""
        places = next(places for places in self._years.values() if place in places)
        return places[: places.index(place)]

    def _listed(self, places: list[str]) -> Iterator[tuple[str, str]]:
        """Place and name of the photos that a year's lists name, each once."""
        listed: dict[str, str] = {}
        for place in places:
            for name in _names(self.path / place / _LISTS / f"{self.subset}.txt"):
                listed.setdefault(name, place)
        for name, place in listed.items():
            there = (one for one in places if is_regular(self.path / one / _PHOTOS / name))
            yield place if len(places) == 1 else next(there, place), name


def _names(path: Path) -> Iterator[str]:
    """Names of the photos of a list; none if it is not there."""
    if not is_regular(path):
        return
    try:
        for number, line in numbered_lines(path):
            if len(line.split()) > 1:
                raise DataError(
                    "a list of photos is damaged", where=f"{path}:{number}", seen=line[:80], expected="one ID per line"
                )
            yield f"{line}.jpg"
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError("a list of photos cannot be read", where=path, seen=str(error)) from error


def _photos(path: Path, places: list[str]) -> Iterator[tuple[str, str]]:
    """Place and name of all photos of a year, by name, each once."""
    folders = [sorted_images(path / place / _PHOTOS) for place in places]
    ordered = heapq.merge(*(_numbered(names, number) for number, names in enumerate(folders)))
    for name, alike in groupby(ordered, lambda one: one[0]):
        yield places[next(alike)[1]], os.fsdecode(name)


def _numbered(names: Iterator[str], number: int) -> Iterator[tuple[bytes, int]]:
    return ((os.fsencode(name), number) for name in names)


def year_places(path: Path) -> dict[str, list[str]]:
    """The places of each year below a path that holds VOC in any of the ways that archives unpack.

    Relative to the path, with a slash behind. Where the path is the folder of a year itself, that year and its place
    are the empty string.
    """
    if _is_year(path):
        return {"": [""]}
    unpacked = [name for name in matching_names(path, _UNPACKED) if name != "VOCdevkit"]
    # Some programs unpack an archive into a folder of its name, in which another of that name is.
    roots = ["", *(f"{name}/" for name in unpacked), *(f"{name}/{name}/" for name in unpacked)]
    above = [f"{root}{kit}" for root in roots for kit in ("", "VOCdevkit/")]
    years = {year: [f"{folder}{year}/" for folder in above if _is_year(path / folder / year)] for year in _YEARS}
    return {year: places for year, places in years.items() if places}


def _is_year(path: Path) -> bool:
    return all(is_folder(path / part) for part in (_PHOTOS, _LISTS))
