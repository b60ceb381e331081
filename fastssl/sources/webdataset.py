"""Layout `webdataset`: photos that are in WebDataset archives already, a folder of `*.tar` or one of them.

    KEY.jpg, KEY.cls, ...           members of an archive; those of one sample follow each other

The format is that of the `webdataset` library: a member's key is its path up to the first dot of its file name, and the
rest is what it holds. Of a sample the first of `jpg`, `jpeg`, `webp` and `png` is the photo, or else the first member
that ends in one of them (`left.jpg`); `cls`, an integer, is its class. Other members are passed over.

Archives are plain tar files, not compressed, and end with the empty block that says so: one without it was cut short.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, cast

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import MANIFEST, Domain
from fastssl.sources.images import decode_image
from fastssl.sources.keys import key_of, reference_parts
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset

_PHOTOS = ("jpg", "jpeg", "webp", "png")
_CLASS = "cls"
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
_REFERENCE = "ARCHIVE/OFFSET/KEY"
_ARCHIVE = re.compile(r".+\.tar", re.DOTALL)
_BLOCK = 512


class WebDatasetSource:
    """The photos of all archives; a reference is `ARCHIVE/OFFSET/KEY`, the offset being that of the first header.

    Args:
        path: the folder of the archives, or one archive.
        subset: None; there are no splits.

    Raises:
        UsageError: a subset was asked for.
        DataError: there are no archives, one is cut short or compressed, or `fastssl` packed them.
    """

    layout: ClassVar[str] = "webdataset"
    domain: ClassVar[Domain] = "real"
    labelled: ClassVar[bool] = False
    licence: str = "unknown"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """A tar file, or a folder with some. Those that `fastssl` packed are recognised too, and then refused."""
        return bool(_archives(path))

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        archives = _archives(self.path)
        if not archives:
            raise DataError("there are no archives", where=self.path, expected="a folder of *.tar, or one of them")
        self._folder = archives[0].parent
        if (self._folder / MANIFEST).exists():
            raise DataError(
                "this is packed already",
                where=self._folder / MANIFEST,
                expected="archives that fastssl did not pack",
                do="train from this folder as it is; to pack it otherwise, start from the dataset it was made of",
            )
        for archive in archives:
            _check_end(archive)
        self._names = [archive.name for archive in archives]

    def references(self) -> Iterator[str]:
        """By archive, and in the order of the samples there; only headers are read.

        Raises:
            DataError: an archive is damaged between two members.
        """
        for name in self._names:
            with _opened(self._folder / name) as file:
                for sample in _samples(file, self._folder / name, 0):
                    yield f"{name}/{sample[0].offset}/{sample[0].key}"

    def key(self, reference: str) -> str:
        """Archive, number of the sample's first block there, and key, made legal; keys need not be unique."""
        name, offset, key = reference_parts(reference, _REFERENCE)
        return key_of(f"{name.removesuffix('.tar')}/{int(offset) // _BLOCK}/{key}.jpg")

    def read(self, reference: str) -> Record:
        """One photo, and its class where it has one.

        Raises:
            DataError: the archive has no such sample, it has no photo, the photo is damaged, or its class is not a
                number.
        """
        name, offset, key = reference_parts(reference, _REFERENCE)
        path = self._folder / name
        with _opened(path) as file:
            sample = next(_samples(file, path, int(offset)), [])
            members = {member.extension: member for member in sample if member.key == key}
            if not members:
                raise DataError("an archive has no such sample", where=path, seen=reference)
            photo = _photo(list(members))
            if photo is None:
                expected = f"one of {', '.join(_PHOTOS)}"
                raise DataError("a sample has no photo", where=f"{path}: {key}", seen=list(members), expected=expected)
            content = members[photo].content(file)
            number = members[_CLASS].content(file) if _CLASS in members else None
        image = decode_image(content, f"{path}: {key}.{photo}")
        label = None if number is None else _class(number, f"{path}: {key}.{_CLASS}")
        return Record(key=self.key(reference), image=image, label=label)


class _Member(NamedTuple):
    key: str
    extension: str
    offset: int
    """Of the first header."""
    start: int
    size: int
    """Of the data."""

    def content(self, file: BinaryIO) -> bytes:
        file.seek(self.start)
        return file.read(self.size)


def _samples(file: BinaryIO, path: Path, start: int) -> Iterator[list[_Member]]:
    """Neighbouring members that share a key; a kind that comes again begins another sample."""
    sample: list[_Member] = []
    for member in _members(file, path, start):
        if sample and (member.key != sample[0].key or any(member.extension == other.extension for other in sample)):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _members(file: BinaryIO, path: Path, start: int) -> Iterator[_Member]:
    """Files in an archive from this header on, whose names have a key and an extension."""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (header := tar.next()) is not None:
                cast(Any, tar).members.clear()  # or all headers would stay in memory
                name = _MEMBER.fullmatch(header.name)
                if name is not None and header.isreg():
                    yield _Member(name[1], name[2].lower(), header.offset, header.offset_data, header.size)
            # tarfile takes whatever it cannot parse for the end.
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no header and no end at byte {tar.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _check_end(path: Path) -> None:
    with _opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _BLOCK))
        if size % _BLOCK or file.read() != bytes(_BLOCK):
            raise _damaged(path, f"{size} bytes, of which the last ones are not an empty block")


def _damaged(path: Path, seen: str) -> DataError:
    return DataError(
        "an archive is cut short or damaged, or not a plain tar file",
        where=path,
        seen=seen,
        expected="whole blocks of 512 bytes, and an empty one at the end",
        do="copy it again; if it is compressed, decompress it",
    )


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError("an archive cannot be opened", where=path, seen=error.strerror) from error


def _archives(path: Path) -> list[Path]:
    """The archive that the path is, or those in the folder, by name."""
    if path.is_file():
        return [path] if _ARCHIVE.fullmatch(path.name) else []
    return [path / name for name in matching_names(path, _ARCHIVE) if (path / name).is_file()]


def _photo(extensions: list[str]) -> str | None:
    exact = (kind for kind in _PHOTOS if kind in extensions)
    ending = (name for name in extensions if name.rpartition(".")[2] in _PHOTOS)
    return next(exact, next(ending, None))


def _class(number: bytes, where: str) -> int:
    try:
        return int(number)
    except ValueError as error:
        raise DataError("a class is not a number", where=where, seen=number[:40]) from error
