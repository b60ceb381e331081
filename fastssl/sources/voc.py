"""Layout `voc`: the photos of PASCAL VOC 2007 and 2012 (Everingham et al., IJCV 2010 and 2015).

    VOCdevkit/VOC{2007,2012}/JPEGImages/ID.jpg
    VOCdevkit/VOC{2007,2012}/ImageSets/Main/{train,val,trainval,test}.txt     one ID per line

A photo shows objects of several classes, so none has a class here; the protocols that evaluate on VOC read its
annotations themselves. The two years have no photo in common: 2012's begin with the year they were taken in, as in
`2008_000001`. The archive of 2007's test photos belongs into the same folder as the others; that of 2012's test has no
annotations, but its photos and list do for training without labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import Domain
from fastssl.sources.images import read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import sorted_images
from fastssl.sources.opening import checked_subset, first_reference

SUBSETS = ("train", "val", "trainval", "test")
_YEARS = ("VOC2007", "VOC2012")
_PHOTOS, _LISTS = "JPEGImages", "ImageSets/Main"


class VocSource:
    """The photos of one year or both; a reference is the path below the folder.

    Args:
        path: `VOCdevkit`, the folder that holds it, or the folder of one year.
        subset: `train`, `val`, `trainval` or `test`, of every year that has this list; None takes all photos.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no year of VOC, or none has this subset.
    """

    layout: ClassVar[str] = "voc"
    domain: ClassVar[Domain] = "real"
    labelled: ClassVar[bool] = False
    licence: str = "check the terms of PASCAL VOC and of Flickr"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """A year's photos and their lists."""
        return bool(_years(path))

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, SUBSETS)
        self._years = [year for year in _years(self.path) if subset is None or self._list(year).is_file()]
        first_reference(
            self,
            "photos of PASCAL VOC",
            expected=f"VOC2007 or VOC2012 with JPEGImages and ImageSets/Main{f'/{subset}.txt' if subset else ''}",
        )

    def references(self) -> Iterator[str]:
        """By year, and in the order of the list, or without a subset of the names."""
        for year in self._years:
            for name in self._listed(year) if self.subset else sorted_images(self.path / year / _PHOTOS):
                yield f"{year}{_PHOTOS}/{name}"

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

    def _list(self, year: str) -> Path:
        return self.path / year / _LISTS / f"{self.subset}.txt"

    def _listed(self, year: str) -> Iterator[str]:
        try:
            with self._list(year).open(encoding="ascii") as file:
                yield from (f"{line.strip()}.jpg" for line in file if line.strip())
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            raise DataError("a list of photos cannot be read", where=self._list(year), seen=str(error)) from error


def _years(path: Path) -> list[str]:
    """Folders of years relative to the path, with a slash behind; the empty string is the path itself."""
    for candidates in ([""], [f"{year}/" for year in _YEARS], [f"VOCdevkit/{year}/" for year in _YEARS]):
        years = [year for year in candidates if all((path / year / part).is_dir() for part in (_PHOTOS, _LISTS))]
        if years:
            return years
    return []
