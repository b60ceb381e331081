"""Layout `classes`: images sorted into one folder per class, as ImageNet and torchvision's `ImageFolder` have them.

    CLASS/**/image                  one set of images, or
    SPLIT/CLASS/**/image            one for each split: train, val, test, in any of their usual spellings

A class is a folder with images. Where the names of all classes are numbers, all different, these are the classes'
numbers; any others are numbered from 0 in the order of their names. Splits share one numbering, that of all their
classes together, so that splits packed one by one fit each other. A folder without images has no number, so one that
appears beside the classes changes nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import DomainName, PassedOver, Tally
from fastssl.sources.census import passed_over
from fastssl.sources.images import EXTENSIONS, read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import holds_image, sorted_images, sorted_names, top_names
from fastssl.sources.opening import checked_subset

log = logging.getLogger(__name__)

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Spellings of each split, in lower case; folders may have them in any case."""

_NO_CLASS = {"images", "image", "imgs", "img", "photos", "jpegs", "jpegimages", "data"}
"""Names of a split's only folder that say nothing about a class, in lower case."""
_WORDNET = re.compile(r"n[0-9]{8}")
_MOST_NAMES = 10_000


class ClassesSource:
    """Real photos with classes; a reference is the path below the folder.

    Hidden files and folders are passed over, and so is at the top whatever is neither a folder nor an image.

    Args:
        path: the folder of the classes, or of the splits.
        subset: a split, `train`, `val` or `test` or as its folder is spelt; None takes them all.
        licence: of the images, as the user knows it.

    Raises:
        UsageError: the folder holds no such split.
        DataError: there is no such folder, no image in it, an image lies outside of the classes' folders, or the
            folders do not tell what is a split and what a class.
    """

    layout: ClassVar[str] = "classes"
    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = False

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """Two splits that share a class, or folders named by WordNet; other folders may be classes or may not."""
        names = [name[:-1] for name in top_names(path, _MOST_NAMES) if name.endswith("/")]
        splits = sorted(name for name in names if split_of(name))
        below = [{name for name in top_names(path / split, _MOST_NAMES) if name.endswith("/")} for split in splits]
        shared = sorted(set.intersection(*below[:2])) if len(below) > 1 else []
        if shared and _holds_images_directly(path / splits[0] / shared[0]):
            return f"{splits[0]} and {splits[1]} hold the same folders, such as {shared[0][:-1]}"
        for folder in (path, *(path / split for split in splits)):
            classes = sorted(name[:-1] for name in top_names(folder, _MOST_NAMES) if _WORDNET.fullmatch(name[:-1]))
            if len(classes) > 1:
                return f"folders named by WordNet, such as {classes[0]}"
        return None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None, licence: str = "unknown") -> None:
        self.path = Path(path)
        self.licence = licence
        folders = _folders(self.path, only=False)
        self._splits = _splits(self.path, folders)
        self._subset = _spelling(subset, self._splits)
        known = dict.fromkeys([*(str(split_of(name)) for name in self._splits), *self._splits])
        self.subset = checked_subset(self.layout, subset, known)
        self._without_image: list[str] = []
        self.classes = _numbers(self._split_classes() if self._splits else self._with_images("", only=True))
        """The number of each class by its name."""
        if not self.classes or not holds_image(self._top):
            raise DataError(
                "the folder holds no images",
                where=self._top,
                expected=f"folders of classes with files ending in {', '.join(EXTENSIONS)}",
            )

    def references(self) -> Iterator[str]:
        """Paths below the folder, sorted."""
        if self._subset is None:
            yield from sorted_images(self.path)
        else:
            for reference in sorted_images(self._top):
                yield f"{self._subset}/{reference}"

    def key(self, reference: str) -> str:
        """The path, made legal."""
        return key_of(reference)

    def read(self, reference: str) -> Record:
        """One image: turned upright as its EXIF orientation says, RGB, 8 bit; its label is the class's number.

        Raises:
            DataError: it is empty, cut short, damaged, or not an image, or its class is none of those that were there
                when the folder was opened.
        """
        name = reference.removeprefix(f"{reference.partition('/')[0]}/" if self._splits else "").partition("/")[0]
        if name not in self.classes:
            raise DataError("an image's class appeared since the folder was opened", where=self.path / reference)
        return Record(key=self.key(reference), image=read_image(self.path / reference), class_index=self.classes[name])

    def passed_over(self) -> dict[str, PassedOver]:
        """What is no image of a class."""
        tally = Tally()
        for folder in self._without_image:
            if any((self.path / folder).iterdir()):  # an empty one is counted as such
                tally.add("folders of no class, for they hold no image", folder)
        if self._subset is not None:
            for split in self._splits:
                if split != self._subset:
                    tally.add("folders of other splits", split)
        return passed_over(self._top, lambda name: name.lower().endswith(EXTENSIONS), tally, count_empty=True)

    @property
    def _top(self) -> Path:
        return self.path / (self._subset or "")

    def _split_classes(self) -> list[str]:
        """All classes of the splits that have some.

        Raises:
            DataError: a split that was asked for has no classes, or two splits share none.
        """
        classes: dict[str, set[str]] = {}
        for split in self._splits:
            wanted = self._subset in (None, split)
            found = self._with_images(f"{split}/", only=wanted)
            if len(found) == 1 and found[0].lower() in _NO_CLASS:
                if wanted:
                    raise _without_classes(self.path / split / found[0])
                continue  # a split without classes does not stand in the way of another
            if found:
                classes[split] = set(found)
        for one, other in pairwise(classes):
            if classes[one].isdisjoint(classes[other]):
                raise DataError(
                    "two splits share no class, so that one numbering cannot be right for both",
                    where=self.path,
                    seen=f"{one}: {_some(classes[one])}; {other}: {_some(classes[other])}",
                    expected="the same folders of classes in each split",
                    hint="pack a folder that holds one of them, or give the folders the same names",
                )
        return [name for found in classes.values() for name in found]

    def _with_images(self, below: str, *, only: bool) -> list[str]:
        """Folders of classes; those without an image are noted."""
        found = []
        for name in _folders(self.path / below, only=only):
            if holds_image(self.path / below / name):
                found.append(name)
            else:
                self._without_image.append(below + name)
        return found


def split_of(folder: str) -> str | None:
    """The split that a folder's name means, such as `val` for `Validation`; None if it means none."""
    return next((split for split, spellings in SPLITS.items() if folder.lower() in spellings), None)


def _splits(path: Path, folders: list[str]) -> tuple[str, ...]:
    """The folders that are splits, in the order of `SPLITS`; none if the folders are classes.

    Raises:
        DataError: some are splits, others are not, and both hold folders of images.
    """
    splits = [name for name in folders if split_of(name)]
    if not splits:
        return ()
    others = [name for name in folders if name not in splits and holds_image(path / name)]
    if others and all(_holds_images_directly(path / name) for name in splits):
        return ()  # a class may be called like a split: `train` beside `car`
    if others:
        raise DataError(
            "some folders are named like splits and others are not",
            where=path,
            seen=f"splits: {_some(splits)}; others: {_some(others)}",
            expected="folders of classes, or folders of splits",
            hint="give one of the splits' folders as SRC, or move the others away",
        )
    return tuple(sorted(splits, key=lambda name: (list(SPLITS).index(str(split_of(name))), name)))


def _spelling(subset: str | None, splits: tuple[str, ...]) -> str | None:
    """The folder of a subset, which may be named by its folder or its split."""
    exact = (name for name in splits if name == subset)
    return next(exact, next((name for name in splits if subset is not None and split_of(name) == subset), None))


def _holds_images_directly(folder: Path) -> bool:
    return any(not name.endswith("/") for name in top_names(folder, _MOST_NAMES))


def _folders(top: Path, *, only: bool) -> list[str]:
    folders = []
    for name in sorted_names(top):
        if name.endswith("/"):
            folders.append(name[:-1])
        elif only:
            raise _without_classes(top / name)
    return folders


def _without_classes(place: Path) -> DataError:
    return DataError(
        "an image lies outside of the folders of classes",
        where=place,
        expected="CLASS/**/image, or train/CLASS/**/image",
        hint="pack it without classes (--layout folder), or one split that has them (--subset train)",
    )


def _numbers(names: list[str]) -> dict[str, int]:
    ordered = sorted(set(names))
    numbers = [int(name) for name in ordered if re.fullmatch(r"[0-9]{1,9}", name)]
    if len(set(numbers)) != len(ordered):
        if numbers:
            log.warning(
                "%d of %d folders of classes have numbers for names, and not all of them different ones below 10^9: "
                "so the classes are numbered from 0 in the order of their names, as the manifest says",
                len(numbers),
                len(ordered),
            )
        numbers = list(range(len(ordered)))
    return dict(zip(ordered, numbers, strict=True))


def _some(names: set[str] | list[str]) -> str:
    few = sorted(names)[:3]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")
