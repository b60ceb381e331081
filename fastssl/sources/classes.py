"""Layout `classes`: images sorted into one folder per class, as ImageNet and torchvision's `ImageFolder` have them.

    CLASS/**/image                  one set of images, or
    {train,val,test}/CLASS/**/image one for each split

A class is a folder. Where the names of all classes are numbers, all different, these are the classes' numbers; any
others are numbered from 0 in the order of their names, folders without images included. Splits share one numbering,
that of all their classes together, so that splits packed one by one fit each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import Domain
from fastssl.sources.images import EXTENSIONS, read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import holds_image, sorted_images, sorted_names, top_names
from fastssl.sources.opening import checked_subset

SPLITS = ("train", "val", "test")

_MOST_NAMES = 10_000
_LOOKED_INTO = 4


class ClassesSource:
    """Real photos with classes; a reference is the path below the folder.

    Hidden files and folders are passed over, and so is at the top whatever is neither a folder nor an image.

    Args:
        path: the folder of the classes, or of the splits.
        subset: `train`, `val` or `test`, where the folder holds splits; None takes them all.
        licence: of the images, as the user knows it.

    Raises:
        UsageError: the folder holds no such split.
        DataError: there is no such folder, no image in it, or an image lies outside of the classes' folders.
    """

    layout: ClassVar[str] = "classes"
    domain: ClassVar[Domain] = "real"
    labelled: ClassVar[bool] = False

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """Two folders or more and no image at the top, or in the first split, and images directly in the first few."""
        splits = _splits(top_names(path, _MOST_NAMES))
        top = path / splits[0] if splits else path
        folders = sorted(top_names(top, _MOST_NAMES))
        if len(folders) < 2 or not all(name.endswith("/") for name in folders):
            return False
        contents = [top_names(top / folder, _MOST_NAMES) for folder in folders[:_LOOKED_INTO]]
        return all(any(not name.endswith("/") for name in names) for names in contents)

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None, licence: str = "unknown") -> None:
        self.path = Path(path)
        self.licence = licence
        names = _folders(self.path)
        self._splits = _splits(names)
        self.subset = checked_subset(self.layout, subset, self._splits)
        if self._splits:
            # The other splits number the classes too, but images beside their folders, which are left out, do no harm.
            wanted = self._splits if subset is None else (subset,)
            names = [name for split in self._splits for name in _folders(self.path / split, only=split in wanted)]
        self._numbers = _numbers(names)
        top = self.path / (subset or "")
        if not holds_image(top):
            raise DataError(
                "the folder holds no images",
                where=top,
                expected=f"folders of classes with files ending in {', '.join(EXTENSIONS)}",
            )

    def references(self) -> Iterator[str]:
        """Paths below the folder, sorted."""
        if self.subset is None:
            yield from sorted_images(self.path)
        else:
            for reference in sorted_images(self.path / self.subset):
                yield f"{self.subset}/{reference}"

    def key(self, reference: str) -> str:
        """The path, made legal."""
        return key_of(reference)

    def read(self, reference: str) -> Record:
        """One image: turned upright as its EXIF orientation says, RGB, 8 bit; its label is the class's number.

        Raises:
            DataError: it is empty, cut short, damaged, or not an image.
        """
        image = read_image(self.path / reference)
        name = reference.split("/")[1 if self._splits else 0]
        return Record(key=self.key(reference), image=image, label=self._numbers[name])


def _splits(names: Iterable[str]) -> tuple[str, ...]:
    """The splits, if these names at the top are splits and nothing else."""
    given = {name.rstrip("/") for name in names}
    return tuple(split for split in SPLITS if split in given) if given <= set(SPLITS) else ()


def _folders(top: Path, *, only: bool = True) -> list[str]:
    folders = []
    for name in sorted_names(top):
        if name.endswith("/"):
            folders.append(name[:-1])
        elif only:
            raise DataError(
                "an image lies outside of the folders of classes",
                where=top / name,
                expected="CLASS/**/image, or train/CLASS/**/image",
                do="pack it without classes (--layout folder), or one split that has them (--subset train)",
            )
    return folders


def _numbers(names: Iterable[str]) -> dict[str, int]:
    ordered = sorted(set(names))
    numbers = [int(name) for name in ordered if re.fullmatch(r"[0-9]{1,9}", name)]
    if len(set(numbers)) != len(ordered):
        numbers = list(range(len(ordered)))
    return dict(zip(ordered, numbers, strict=True))
