"""Layout `places365`: Places365-Standard (Zhou et al., TPAMI 2017), photos of 365 kinds of scenes.

Its archives unpack in three ways. All that are beside each other in the given folder belong to the dataset:

    data_256/LETTER/CATEGORY[/KIND]/NNNNNNNN.jpg    train; or data_large, and either with _standard behind it, which is
                                                    what torchvision makes of them
    val_256/Places365_val_NNNNNNNN.jpg              val; or val_large
    places365_standard/{train,val}/CATEGORY[-KIND]/NNNNNNNN.jpg     both, the "easyformat"

Where the photos are there in two sizes, those of 256 pixels are taken. The easyformat's folder may be given itself.

Classes are the official numbers, 0 to 364, and come from the folders: of `categories_places365.txt` (lines
`/a/airfield 0`), or without it of `places365_train_standard.txt` (`/a/airfield/00000001.jpg 0`). Without either, the
categories are numbered in the order of their names, which is the official order as long as all 365 are there. Photos of
val that lie in no category's folder have theirs from `places365_val.txt` (`Places365_val_00000001.jpg 165`), and none
without it. These lists come in an archive of their own; they are looked for in the given folder and in
`filelist_places365-standard`.

A few photos of the dataset are gray or CMYK; they become RGB.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import Domain
from fastssl.sources.images import read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import sorted_images, sorted_names, top_names
from fastssl.sources.opening import checked_subset, first_reference

_EASY = ("places365_standard/", "")
_FOLDERS = {
    "train": (
        *("data_256", "data_256_standard", "data_large", "data_large_standard"),
        *(f"{parent}train" for parent in _EASY),
    ),
    "val": ("val_256", "val_large", *(f"{parent}val" for parent in _EASY)),
}
"""Where the photos of a subset may be, the first that is there counts."""
_LISTS = ("", "filelist_places365-standard")
_CATEGORIES, _TRAIN_LIST, _VAL_LIST = "categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"


class Places365Source:
    """The photos in one folder; a reference is the path below it.

    Args:
        path: the folder into which the archives are unpacked.
        subset: `train` or `val`; None takes what is there of both.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no photos (of the subset), or a list is damaged.
    """

    layout: ClassVar[str] = "places365"
    domain: ClassVar[Domain] = "real"
    labelled: ClassVar[bool] = False
    licence: str = "check the terms of Places365"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """A first letter's folder in a tree of the training photos, a numbered photo of val, or the first category."""
        letters = any((path / folder / "a").is_dir() for folder in _FOLDERS["train"] if folder.startswith("data_"))
        easy = any((path / parent / part / "airfield").is_dir() for parent in _EASY for part in _FOLDERS)
        flat = (name for folder in ("val_256", "val_large") for name in top_names(path / folder, 1))
        return letters or easy or any(name.startswith("Places365_val_") for name in flat)

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, tuple(_FOLDERS))
        self._folders = {
            part: folder
            for part, candidates in _FOLDERS.items()
            if subset in (None, part) and (folder := _first_folder(self.path, candidates)) is not None
        }
        first_reference(self, "photos of Places365", expected=" or ".join(_FOLDERS[subset or "train"]))
        self._classes = _classes(self.path, self._folders.values())
        self._val_list = _list(self.path, _VAL_LIST)

    def references(self) -> Iterator[str]:
        """Paths below the folder: first those of train, then those of val, sorted."""
        for folder in self._folders.values():
            for name in sorted_images(self.path / folder):
                yield f"{folder}/{name}"

    def key(self, reference: str) -> str:
        """The path, made legal."""
        return key_of(reference)

    def read(self, reference: str) -> Record:
        """One photo.

        Raises:
            DataError: it is damaged, or no list knows its category.
        """
        image = read_image(self.path / reference)
        return Record(key=self.key(reference), image=image, label=self._label(reference))

    def _label(self, reference: str) -> int | None:
        folder = next(folder for folder in self._folders.values() if reference.startswith(f"{folder}/"))
        category, _, name = reference.removeprefix(f"{folder}/").rpartition("/")
        if category:
            classes, wanted = self._classes, _flat(category)
        elif self._val_list is not None:
            classes, wanted = _classes_of_photos(self._val_list), name
        else:
            return None
        if wanted not in classes:
            raise DataError("a photo's class is not known", where=self.path / reference, seen=wanted)
        return classes[wanted]


def _first_folder(path: Path, candidates: tuple[str, ...]) -> str | None:
    return next((folder for folder in candidates if (path / folder).is_dir()), None)


def _list(path: Path, name: str) -> Path | None:
    return next((path / folder / name for folder in _LISTS if (path / folder / name).is_file()), None)


def _classes(path: Path, folders: Iterable[str]) -> dict[str, int]:
    """Class by category."""
    if (categories := _list(path, _CATEGORIES)) is not None:
        return {_flat(category.lstrip("/")): number for category, number in _lines(categories)}
    if (photos := _list(path, _TRAIN_LIST)) is not None:
        return {_flat(photo.lstrip("/").rpartition("/")[0]): number for photo, number in _lines(photos)}
    names = {name for folder in folders for name in _categories(path / folder)}
    return {name: number for number, name in enumerate(sorted(names))}


@lru_cache(maxsize=1)
def _classes_of_photos(val_list: Path) -> dict[str, int]:
    """Class by file name; not part of a source, which travels with every shard."""
    return dict(_lines(val_list))


def _categories(folder: Path, path: str = "") -> Iterator[str]:
    """Categories that have a folder: folders that hold images and not folders."""
    first = top_names(folder / path, 1)
    if path and first and not first[0].endswith("/"):
        yield _flat(path[:-1])
        return
    for name in sorted_names(folder / path):
        if name.endswith("/"):
            yield from _categories(folder, path + name)


def _flat(category: str) -> str:
    """The easyformat's name, `bakery-shop`, of a category from its path, `b/bakery/shop`."""
    letter, _, rest = category.partition("/")
    return (rest if len(letter) == 1 else category).replace("/", "-")


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                name, number = line.split()
                yield name, int(number)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(
            "a list of Places365 cannot be read", where=path, seen=str(error), expected="PATH NUMBER"
        ) from error
