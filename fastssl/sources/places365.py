"""Layout `places365`: Places365-Standard (Zhou et al., TPAMI 2017), photos of 365 kinds of scenes.

Its archives unpack in three ways. All that are beside each other in the given folder belong to the dataset:

    data_256/LETTER/CATEGORY[/KIND]/NNNNNNNN.jpg    train; or data_large, and either with _standard behind it, which is
                                                    what torchvision makes of them
    val_256/Places365_val_NNNNNNNN.jpg              val; or val_large
    places365_standard/{train,val}/CATEGORY[-KIND]/NNNNNNNN.jpg     both, the "easyformat"

Where the photos are there in two sizes, those of 256 pixels are taken. Any of these folders may be given itself; keys
are the same as if the folder above was given, except that the easyformat's begin with `train` or `val` then.

Classes are the official numbers, 0 to 364, whichever folders there are. For photos in folders they come from the
folder's name, by `categories_places365.txt` (lines `/a/airfield 0`) if it is there, and else by the table that fastssl
has of it. Photos of val that lie in no category's folder have theirs from `places365_val.txt` (lines
`Places365_val_00000001.jpg 165`), and none without it. These lists come in an archive of their own; they are looked for
in the given folder and in those above and beside it, and in `filelist_places365-standard` in each.

A few photos of the dataset are gray or CMYK; they become RGB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import DomainName, PassedOver
from fastssl.sources import census
from fastssl.sources.images import EXTENSIONS, read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import sorted_images, top_names
from fastssl.sources.lists import numbered_lines
from fastssl.sources.opening import checked_subset, first_reference, whole_path
from fastssl.sources.places365_categories import CATEGORIES
from fastssl.sources.regular import is_folder, is_regular

_EASY = ("places365_standard/", "")
_FOLDERS = {
    "train": (
        *("data_256", "data_256_standard", "data_large", "data_large_standard"),
        *(f"{parent}train" for parent in _EASY),
    ),
    "val": ("val_256", "val_large", *(f"{parent}val" for parent in _EASY)),
}
"""Where the photos of a subset may be, the first that is there counts."""
_LETTERS = tuple(folder for folder in _FOLDERS["train"] if folder.startswith("data_"))
_LISTS = ("", "filelist_places365-standard")
_CATEGORIES, _VAL_LIST = "categories_places365.txt", "places365_val.txt"
_KNOWN_LISTS = r"categories_places365|places365_(train_standard|train_challenge|val|test)"
_FLAT = "Places365_val_"
"""How the names of val's photos begin where they lie in one folder."""


class Places365Source:
    """The photos in one folder; a reference is the path below it, or below the folder above it if it is a part itself.

    Args:
        path: the folder into which the archives are unpacked, or one of theirs: `data_256`, `val_256`,
            `places365_standard`, `places365_standard/train`.
        subset: `train` or `val`; None takes what is there of both.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no photos (of the subset), or a list is damaged.
    """

    layout: ClassVar[str] = "places365"
    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = False
    licence: str = "check the terms of Places365"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """A first letter's folder in a tree of the training photos, a numbered photo of val, or the first category."""
        for folder in _LETTERS:
            if is_folder(path / folder / "a"):
                return f"{folder} has categories by their first letter"
        for folder in ("val_256", "val_large"):
            if _is_flat(path / folder):
                return f"{folder} has photos named {_FLAT}..."
        for folder in (f"{parent}{part}" for parent in _EASY for part in _FOLDERS):
            if is_folder(path / folder / "airfield"):
                return f"{folder} has the category airfield"
        part = _part_of(path)
        return f"it is a part of the dataset, photos of {part}" if part else None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, tuple(_FOLDERS))
        # The folders' paths are relative to this one.
        self._base = self.path
        self._parts = {
            part: folder
            for part, candidates in _FOLDERS.items()
            if (folder := _first_folder(self.path, candidates)) is not None
        }
        if not self._parts and (part := _part_of(self.path)):
            whole = whole_path(self.path)
            self._base, self._parts = whole.parent, {part: whole.name}
        self._folders = {part: folder for part, folder in self._parts.items() if subset in (None, part)}
        first_reference(self, "photos of Places365", expected=" or ".join(_FOLDERS[subset or "train"]))
        self._classes = _classes(self._list(_CATEGORIES))
        self._val_list = self._list(_VAL_LIST)
        if self._val_list is not None and "val" in self._folders:
            _check_numbers(self._val_list, self._classes)

    @property
    def classes(self) -> dict[str, int]:
        """Number of each category, named as in the easyformat: `apartment_building-outdoor`."""
        return dict(self._classes)

    def references(self) -> Iterator[str]:
        """Paths below the folder: first those of train, then those of val, sorted."""
        for folder in self._folders.values():
            for name in sorted_images(self._base / folder):
                yield f"{folder}/{name}"

    def key(self, reference: str) -> str:
        """The path, made legal."""
        return key_of(reference)

    def read(self, reference: str) -> Record:
        """One photo.

        Raises:
            DataError: it is damaged, or no list knows its category.
        """
        image = read_image(self._base / reference)
        return Record(key=self.key(reference), image=image, class_index=self._class_index(reference))

    def passed_over(self) -> dict[str, PassedOver]:
        """Whatever is neither a photo of these folders nor a list, such as photos of test or in another size."""
        folders = "|".join(map(re.escape, self._parts.values()))
        images = "|".join(map(re.escape, EXTENSIONS))
        lists = "|".join(f"{re.escape(folder)}/" for folder in _LISTS if folder)
        used = re.compile(rf"(?:{folders})/.*(?i:{images})|(?:{lists})?(?:{_KNOWN_LISTS})\.txt")
        below = "" if self._base == self.path else f"{whole_path(self.path).name}/"
        return census.passed_over(self.path, lambda path: used.fullmatch(below + path) is not None)

    def _class_index(self, reference: str) -> int | None:
        folder = next(folder for folder in self._folders.values() if reference.startswith(f"{folder}/"))
        category, _, name = reference.removeprefix(f"{folder}/").rpartition("/")
        if category:
            classes, wanted = self._classes, _flat(category)
        elif self._val_list is not None:
            classes, wanted = _classes_of_photos(self._val_list), name
        else:
            return None
        if wanted not in classes:
            raise DataError(
                "a photo's class is not known",
                where=self._base / reference,
                seen=wanted,
                hint="take it out, or see to the lists of Places365 beside the photos",
            )
        return classes[wanted]

    def _list(self, name: str) -> Path | None:
        """A list in the given folder, or in those above and beside it."""
        tops = dict.fromkeys((self.path, self._base, whole_path(self._base).parent))
        paths = (top / folder / name for top in tops for folder in _LISTS)
        return next(filter(is_regular, paths), None)


def _first_folder(path: Path, candidates: tuple[str, ...]) -> str | None:
    return next((folder for folder in candidates if is_folder(path / folder)), None)


def _part_of(path: Path) -> str | None:
    """The subset whose photos lie in the folder itself."""
    name = whole_path(path).name
    if is_folder(path / "a" / "airfield") or (name in _LETTERS and is_folder(path / "a")):
        return "train"
    if name in _FOLDERS and is_folder(path / "airfield"):
        return name
    return "val" if _is_flat(path) else None


def _is_flat(folder: Path) -> bool:
    return any(name.startswith(_FLAT) for name in top_names(folder, 10))


def _classes(categories: Path | None) -> dict[str, int]:
    """Number by name of the easyformat."""
    if categories is None:
        return {_flat(category): number for category, number in CATEGORIES.items()}
    classes = {_flat(category.lstrip("/")): number for category, number in _lines(categories)}
    if len(set(classes.values())) < len(classes):
        raise DataError("a list of Places365 gives one number to several categories", where=categories)
    return classes


def _check_numbers(val_list: Path, classes: dict[str, int]) -> None:
    """Refuse numbers that no category has, such as those of a list that counts from 1."""
    unknown = set(_classes_of_photos(val_list).values()) - set(classes.values())
    if unknown:
        raise DataError(
            "a list of Places365 has numbers of no category",
            where=val_list,
            seen=min(unknown),
            expected=f"{min(classes.values())} to {max(classes.values())}",
        )


@lru_cache(maxsize=1)
def _classes_of_photos(val_list: Path) -> dict[str, int]:
    """Class by file name; not part of a source, which travels with every shard."""
    return dict(_lines(val_list))


def _flat(category: str) -> str:
    """The easyformat's name, `bakery-shop`, of a category from its path, `b/bakery/shop`."""
    letter, _, rest = category.partition("/")
    return (rest if len(letter) == 1 else category).replace("/", "-")


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    where = f"{path}"
    try:
        for line_number, line in numbered_lines(path):
            where = f"{path}:{line_number}"
            name, number = line.split()
            yield name, int(number)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(
            "a list of Places365 cannot be read", where=where, seen=str(error), expected="PATH NUMBER"
        ) from error
