"""Layout `webdataset`: photos that are in WebDataset archives already, a folder of them or one archive.

    **/*.tar, *.tar.gz, ...         archives, see `fastssl.sources.archives`
        KEY.jpg, KEY.cls, ...       members of an archive; those of one sample share a key

The format is that of the `webdataset` library: a member's key is its path up to the first dot of its file name, and the
rest, in lower case, is its kind.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import MANIFEST, STATE, DomainName, PassedOver, Tally
from fastssl.sources import census
from fastssl.sources.archives import (
    ARCHIVES,
    BLOCK,
    Member,
    Opener,
    archives_below,
    check_whole,
    is_archive,
    member_reason,
    members,
    not_read_reason,
)
from fastssl.sources.images import EXTENSIONS, decode_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import holds_image
from fastssl.sources.opening import checked_subset

_KINDS = tuple(ending.removeprefix(".") for ending in EXTENSIONS)
_PREFERRED = tuple(kind for kind in ("jpg", "jpeg", "webp", "png") if kind in _KINDS)
_PHOTOS = (*_PREFERRED, *(kind for kind in _KINDS if kind not in _PREFERRED))
_CLASS = "cls"
_CLASS_TEXT = re.compile(rb"\s*(\d+|-1)\s*")
_NO_CLASS = -1

_OFFSETS = re.compile(r"/(\d+(?:\+\d+)*)/")
_PLAIN = ".tar"
_FOLDERS_LOOKED_INTO = 64

SECOND_PHOTOS = "photos beside the first one of their sample"
WITHOUT_PHOTO = "members of samples without a photo"


class WebDatasetSource:
    """The photos of all archives, in the order of the archives' paths, and there of the samples.

    A sample is made of the members of one archive that share a key. Where they follow each other, a kind that comes
    again begins another sample of that key. Where they lie apart, each run of neighbours joins the sample of its key
    before it, unless they have a kind in common: then it begins another. Archives that `cat` joined in one file share
    no samples.

    Of a sample the photo is the member whose kind is `jpg`, `jpeg`, `webp`, `png` or another ending of an image, the
    first of these that is there, or else the first member whose kind ends in one, as `left.jpg`. Its class is `cls`,
    an integer, of which -1 means none. All other members are counted (`passed_over`), none is left out without a word.

    A reference is `ARCHIVE/OFFSET/KEY`, the offset being that of the first header; where members lie apart, it is
    `OFFSET+OFFSET`, one for each run of neighbours.

    Args:
        path: the folder of the archives, or one archive.
        subset: None; there are no splits.

    Raises:
        UsageError: a subset was asked for.
        DataError: there are no archives, one is cut short, or `fastssl` packed them.
    """

    layout: ClassVar[str] = "webdataset"
    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = False
    licence: str = "unknown"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """An archive, or some in a folder or one below, where there are not as many images, nor folders of images.

        Beside a tree of images an archive is most likely what the tree was unpacked from. Archives that `fastssl`
        packed are recognised too, and then refused.
        """
        if path.is_file():
            return f"{path.name} is an archive" if is_archive(path.name) else None
        archives = _archives_near(path)
        if not archives:
            return None
        return f"{len(archives)} archive{'s' * (len(archives) > 1)}, such as {archives[0]}"

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        is_folder = self.path.is_dir()
        self._folder = self.path if is_folder else self.path.parent
        _refuse_packed(self._folder)
        if is_folder:
            self._names = archives_below(self.path)
        else:
            self._names = [self.path.name] if self.path.is_file() and is_archive(self.path.name) else []
        if not self._names:
            raise _no_archives(self.path)
        for name in self._names:
            check_whole(self._folder / name)
        self._known = frozenset(self._names)
        self._opener = Opener()

    def references(self) -> Iterator[str]:
        """Samples archive by archive, in their order there; only headers are read, twice.

        Raises:
            DataError: an archive is damaged between two members.
        """
        for name in self._names:
            for sample in self._samples(name, None):
                if _photo([member.kind for member in _of(sample)]) is not None:
                    offsets = "+".join(str(run[0].offset) for run in sample)
                    yield f"{name}/{offsets}/{sample[0][0].key}"

    def passed_over(self) -> dict[str, PassedOver]:
        """Members of archives, and entries of the folder, that are no part of any sample.

        Every member counts once, but for folders; so do the members of samples that have no photo.

        Raises:
            DataError: as `references`; or a folder cannot be listed.
        """
        tally = Tally()
        for name in self._names:
            for sample in self._samples(name, tally):
                _count_unused(list(_of(sample)), name, tally)
        if self.path.is_file():
            return tally.result()

        def is_told(path: str) -> bool:
            reason = not_read_reason(path)
            if reason is not None:
                tally.add(reason, path)
            return reason is not None or path in self._known

        return census.passed_over(self.path, is_told, tally)

    def key(self, reference: str) -> str:
        """Archive, number of the sample's first block there, and key, made legal; keys need not be unique.

        Raises:
            DataError: it is not a reference of this source.
        """
        name, offsets, key = self._parts(reference)
        place = f"{offsets[0] // BLOCK}/{key}"
        if name.endswith(_PLAIN) and "/" not in name:
            return key_of(f"{name.removesuffix(_PLAIN)}/{place}.jpg")
        # Another ending, so that this is the path of no sample of a plain archive; it makes for a hash.
        return key_of(f"{name}/{place}.tar")

    def read(self, reference: str) -> Record:
        """One photo, and its class where it has one.

        Raises:
            DataError: the archive has no such sample, it has no photo, the photo is damaged, or its class is not a
                number.
            MachineError: there is no room to decompress an archive.
        """
        name, offsets, key = self._parts(reference)
        path = self._folder / name
        with self._opener.open(path) as file:
            found = {
                member.kind: member
                for offset in offsets
                for member in next(_runs(members(file, path, offset)), [])
                if member.key == key
            }
            if not found:
                raise DataError("an archive has no such sample", where=path, seen=reference)
            photo = _photo(list(found))
            if photo is None:
                expected = f"one of {', '.join(_PHOTOS)}"
                raise DataError("a sample has no photo", where=f"{path}: {key}", seen=list(found), expected=expected)
            content = _content(found[photo], file, path)
            number = _content(found[_CLASS], file, path) if _CLASS in found else None
        image = decode_image(content, f"{path}: {found[photo].name}")
        class_index = None if number is None else _class(number, f"{path}: {found[_CLASS].name}")
        return Record(key=self.key(reference), image=image, class_index=class_index)

    def _parts(self, reference: str) -> tuple[str, list[int], str]:
        """Archive, offsets and key. The archive is known, for a slash and numbers may be in any of them."""
        for start in (match.start() for match in re.finditer(r"/(?=\d)", reference)):
            offsets = _OFFSETS.match(reference, start)
            if offsets is not None and reference[:start] in self._known:
                return reference[:start], [int(offset) for offset in offsets[1].split("+")], reference[offsets.end() :]
        raise DataError("a reference is not of this dataset", seen=reference, expected="ARCHIVE/OFFSET/KEY")

    def _samples(self, name: str, tally: Tally | None) -> Iterator[list[list[Member]]]:
        """Samples as runs of neighbours, in the order of their first members."""
        path = self._folder / name

        def skipped(reason: str, member: str) -> None:
            if tally is not None:
                tally.add(reason, f"{name}/{member}")

        with self._opener.open(path) as file:
            lie_apart = _lie_apart(members(file, path))
            runs = _runs(members(file, path, skipped=skipped))
            yield from _joined(runs) if lie_apart else ([run] for run in runs)


def _runs(found: Iterable[Member]) -> Iterator[list[Member]]:
    """Neighbouring members that share a key; a kind that comes again begins another run."""
    run: list[Member] = []
    for member in found:
        if run and (_sample_key(member) != _sample_key(run[0]) or any(member.kind == other.kind for other in run)):
            yield run
            run = []
        run.append(member)
    if run:
        yield run


def _lie_apart(found: Iterable[Member]) -> bool:
    """A key comes again after another one; eight bytes for each are in memory, and two keys may be taken for one."""
    hashes, last = array("q"), None
    for member in found:
        key = _sample_key(member)
        if key != last:
            hashes.append(hash(key))
            last = key
    ordered = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
    ordered.sort()
    return bool((ordered[1:] == ordered[:-1]).any())


def _joined(runs: Iterable[list[Member]]) -> list[list[list[Member]]]:
    """Runs that lie apart as samples; all headers of one archive are in memory."""
    samples: list[list[list[Member]]] = []
    latest: dict[tuple[int, str], list[list[Member]]] = {}
    for run in runs:
        key = _sample_key(run[0])
        sample = latest.get(key)
        if sample is None or {member.kind for member in _of(sample)} & {member.kind for member in run}:
            sample = latest[key] = []
            samples.append(sample)
        sample.append(run)
    return samples


def _sample_key(member: Member) -> tuple[int, str]:
    return member.part, member.key


def _of(sample: list[list[Member]]) -> Iterator[Member]:
    return (member for run in sample for member in run)


def _photo(kinds: list[str]) -> str | None:
    exact = next((kind for kind in _PHOTOS if kind in kinds), None)
    if exact is not None:
        return exact
    photos = [kind for kind in kinds if _is_photo(kind)]
    preferred = [kind for kind in photos if kind.rpartition(".")[2] in _PREFERRED]
    return next(iter([*preferred, *photos]), None)


def _is_photo(kind: str) -> bool:
    return kind.rpartition(".")[2] in _PHOTOS


def _count_unused(sample: list[Member], name: str, tally: Tally) -> None:
    photo = _photo([member.kind for member in sample])
    for member in sample:
        if photo is not None and member.kind in (photo, _CLASS):
            continue
        if photo is not None and _is_photo(member.kind):
            reason = SECOND_PHOTOS
        else:
            reason = member_reason(member.name)
            if photo is None and "(" not in reason:  # where something else would have read the photo, that is told
                reason = WITHOUT_PHOTO
        tally.add(reason, f"{name}/{member.name}")


def _content(member: Member, file: BinaryIO, path: Path) -> bytes:
    try:
        return member.content(file)
    except OSError as error:
        raise DataError("an archive cannot be read", where=path, seen=error.strerror) from error


def _class(number: bytes, where: str) -> int | None:
    text = _CLASS_TEXT.fullmatch(number)
    if text is None:
        expected = "an integer from 0, or -1 for none"
        raise DataError("a class is not a number", where=where, seen=number[:40], expected=expected)
    class_index = int(text[1])
    return None if class_index == _NO_CLASS else class_index


def _archives_near(folder: Path) -> list[str]:
    """Archives in a folder, or else in folders directly below; none if images speak against it."""
    if not folder.is_dir():
        return []
    names, folders = _looked_at(folder)
    archives = [name for name in names if is_archive(name)]
    images = sum(name.lower().endswith(EXTENSIONS) for name in names)
    for below in folders[:_FOLDERS_LOOKED_INTO]:
        archives += [f"{below}/{name}" for name in _looked_at(folder / below)[0] if is_archive(name)]
    if len(archives) <= images or any(holds_image(folder / below) for below in folders):
        return []
    return archives


def _looked_at(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and folders in a folder that may be of use, sorted."""
    with os.scandir(folder) as entries:
        used = [(entry.name, entry.is_dir()) for entry in entries if census.reason_against(entry) is None]
    return sorted(name for name, is_folder in used if not is_folder), sorted(name for name, below in used if below)


def _refuse_packed(folder: Path) -> None:
    try:
        is_packed = census.is_packed(os.fspath(folder)) or Path(folder, STATE).is_dir()
    except OSError as error:
        raise DataError("a folder cannot be looked into", where=folder, seen=error.strerror) from error
    if is_packed:
        raise DataError(
            "this is packed already, or a packing into it was begun",
            where=folder / MANIFEST,
            expected="archives that fastssl did not pack",
            hint="train from this folder as it is; to pack it otherwise, start from the dataset it was made of",
        )


def _no_archives(path: Path) -> DataError:
    expected = f"a folder of {ARCHIVES}, or one of them"
    if not path.is_dir():
        reason = not_read_reason(path.name)
        if path.name.lower().endswith(EXTENSIONS):
            seen, hint = "a photo", "give the folder that it lies in, with --layout folder"
        elif reason is not None:
            seen, hint = "an archive of a kind that is not read", "unpack it, and give the folder, with --layout folder"
        else:
            seen, hint = "a file of another kind" if path.exists() else "nothing", None
        return DataError("there are no archives", where=path, seen=seen, expected=expected, hint=hint)
    tally = Tally()

    def is_not_read(name: str) -> bool:
        reason = not_read_reason(name)
        if reason is not None:
            tally.add(reason, name)
        return reason is not None

    found = census.passed_over(path, is_not_read, tally)
    most = sorted(found.items(), key=lambda item: -item[1].count)[:5]
    seen = "; ".join(f"{passed.count} {reason}" for reason, passed in most) or "an empty folder"
    return DataError("there are no archives", where=path, seen=seen, expected=expected, hint=_what_to_do(found))


def _what_to_do(found: dict[str, PassedOver]) -> str | None:
    if any(reason.startswith("archives ending in") for reason in found):
        return "decompress or unpack them first"
    if any(reason.endswith(EXTENSIONS) for reason in found):
        return "pack photos that lie in a folder with --layout folder"
    return None
