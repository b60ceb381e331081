"""Proof of one shard: every byte of its archive, the files beside it, and every sample.

The archive is read once, front to back, and compared with the one that `fastssl.shards.archive.ShardFile` writes for
its samples: canonical headers, empty padding, two empty blocks at the end. So each byte of it is either implied by the
others or covered by a member's checksum, and a damaged one is not only noticed but located. Index and checksums say
what a damaged header or member was; the SHA-256 says which of archive and companion is the damaged one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastssl.errors import ShardError
from fastssl.faults import machine_faults_named
from fastssl.shards.codec import TargetCodec, unpack_targets
from fastssl.shards.image_codec import ImageCodec
from fastssl.shards.index import (
    CHECKSUMS,
    INDEX,
    Listed,
    Location,
    beside,
    checksum_line,
    file_of_lines,
    index_line,
    salvaged_checksums,
    salvaged_index,
)
from fastssl.shards.manifest import CLASS_INDEX, TARGET_MEMBERS, Settings, ShardEntry
from fastssl.shards.split import key_place
from fastssl.shards.statistics import Statistics, depth_values, image_values, mask_values, member_bytes
from fastssl.shards.store import StoredFiles
from fastssl.shards.tar import BLOCK, END, KEY, KEY_BYTES, NAME_BYTES, member_header

LISTED = 100
"""Faults of a shard, and of the dataset as a whole, that are listed; more are only counted."""
HASH_BYTES = 8

_LENGTH_TOLERANCE = 0.1
"""Tolerance of a stored normal's length; rounding to 8 bits, here and there, makes 0.02 of it."""
_DIGITS = 18
"""Longer numbers than this are damaged ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is not as it was packed."""

    file: str
    """Name below the dataset's folder."""
    key: str | None = None
    member: str | None = None
    span: tuple[int, int] | None = None
    """The bytes of the file concerned: the first one, and the one behind the last."""
    what: str
    seen: str | int | float | None = None
    expected: str | int | float | None = None

    def __str__(self) -> str:
        place = ".".join(name for name in (self.key, self.member) if name is not None)
        where = [self.file, *([place] if place else [])]
        if self.span is not None:
            first, last = self.span[0], self.span[1] - 1
            where.append(f"byte {first}" if first == last else f"bytes {first} to {last}")
        values = {"seen": self.seen, "expected": self.expected}
        shown = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        return f"{', '.join(where)}: {self.what}" + (f" ({shown})" if shown else "")


class Faults:
    """The faults of one file and of what belongs to it; the first of them are kept."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.listed: list[Fault] = []
        self.num_unlisted = 0

    def __bool__(self) -> bool:
        return bool(self.listed)

    def add(self, what: str, *, file: str | None = None, **facts: Any) -> None:
        """Note a fault of this file, or of another one; the facts are fields of `Fault`."""
        if len(self.listed) == LISTED:
            self.num_unlisted += 1
        else:
            self.listed.append(Fault(file=self.file if file is None else file, what=what, **facts))

    def extend(self, others: Faults) -> None:
        """Note all of them."""
        room = LISTED - len(self.listed)
        self.listed += others.listed[:room]
        self.num_unlisted += len(others.listed[room:]) + others.num_unlisted


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFindings:
    """The content of a shard, and what is wrong with it."""

    faults: Faults
    statistics: Statistics = field(default_factory=Statistics)
    """Statistics of the samples that could be decoded, without their cameras."""
    hashes: bytes = b""
    """`key_hash` of each key."""
    num_bytes: int | None = None
    """Size of the archive; None = there is none, or it cannot be read."""
    sha256: str = ""


def key_hash(key: str) -> bytes:
    """`HASH_BYTES` bytes that two keys share by a chance of one in 2^64 only."""
    return hashlib.blake2b(key.encode("ascii"), digest_size=HASH_BYTES).digest()


Content = bytes | FileNotFoundError | ShardError
"""The bytes of a file, or why there are none."""


def content_of(files: StoredFiles, name: str) -> Content:
    """The content of a small file, or why it cannot be read."""
    try:
        return files.read(name)
    except (FileNotFoundError, ShardError) as error:
        return error.with_traceback(None)


def held(content: Content) -> bytes:
    """The bytes of a file; of one that cannot be read, which is a fault of its own, none."""
    return content if isinstance(content, bytes) else b""


@dataclass(frozen=True)
class ShardProof:
    """Facts that all shards of a dataset share; goes to the workers that check them."""

    files: StoredFiles
    height: int
    width: int
    members: tuple[str, ...]
    """Names of a sample's members, in their order."""
    settings: Settings

    def findings(self, entry: ShardEntry) -> ShardFindings:
        """Check one shard, its index and its checksums.

        Raises:
            MachineError: the file system does not give a file, which says nothing about it.
            DataError: a store does not answer.
        """
        faults = Faults(entry.name)
        companions = {suffix: content_of(self.files, beside(entry.name, suffix)) for suffix in (INDEX, CHECKSUMS)}
        samples = _Samples(self, entry, companions, faults)
        try:
            with self.files.archive(entry) as file, machine_faults_named(self.files.place(entry.name)):
                archive = _Archive(file, entry, samples.listed, faults)
                for _, members in groupby(archive.members(), key=lambda member: member.key):
                    samples.add(list(members))
        except (FileNotFoundError, ShardError) as error:
            faults.add(unusable(error))
            return ShardFindings(faults=faults)
        self._conclude(entry, archive, samples, companions, faults)
        return ShardFindings(
            faults=faults,
            statistics=samples.statistics,
            hashes=b"".join(map(key_hash, samples.keys)),
            num_bytes=archive.num_bytes,
            sha256=archive.sha256,
        )

    def _conclude(
        self,
        entry: ShardEntry,
        archive: _Archive,
        samples: _Samples,
        companions: Mapping[str, Content],
        faults: Faults,
    ) -> None:
        """Note the faults that show only when all of the archive has been seen."""
        sound = archive.sha256 == entry.sha256
        if archive.num_bytes != entry.bytes:
            what = "the file is cut short"
            if sound:
                what = "the size is not the manifest's, though the SHA-256 is"
            elif archive.num_bytes > entry.bytes:
                what = "the file is longer than it was packed"
            faults.add(what, seen=f"{archive.num_bytes} bytes", expected=f"{entry.bytes} bytes")
        elif not sound:
            whole = not faults and not samples.mismatches
            but = ", though every member has the checksum that it was packed with" if whole else ""
            faults.add(f"the SHA-256 is not the manifest's{but}", seen=archive.sha256, expected=entry.sha256)
        if not sound:
            faults.extend(samples.mismatches)
        count = len(samples.keys)
        if count != entry.samples:
            faults.add("the number of samples is not the manifest's", seen=count, expected=entry.samples)
        # Where the archive is the damaged one, it cannot tell what its companions should be.
        index = file_of_lines(INDEX, samples.index) if sound or archive.complete else None
        _compare(beside(entry.name, INDEX), companions[INDEX], index, samples.keys, faults)
        told = sound or (archive.complete and not samples.mismatches)
        checksums = file_of_lines(CHECKSUMS, samples.checksums) if told else None
        _compare(beside(entry.name, CHECKSUMS), companions[CHECKSUMS], checksums, samples.keys, faults)


def _compare(name: str, seen: Content, expected: bytes | None, keys: list[str], faults: Faults) -> None:
    """Compare a file of a head and a line per sample with what is expected; if None, it only has to be there."""
    if not isinstance(seen, bytes):
        faults.add(unusable(seen), file=name)
        return
    if expected is None or seen == expected:
        return
    span = _difference(seen, expected, 0)
    line = expected.count(b"\n", 0, span[0])
    faults.add(
        "the file does not describe its archive",
        file=name,
        key=keys[line - 1] if 1 <= line <= len(keys) else None,
        span=span,
        seen=_line(seen, line),
        expected=_line(expected, line),
    )


def unusable(error: FileNotFoundError | ShardError) -> str:
    """The fault of a file that cannot be read, through no fault of the machine."""
    return f"the file cannot be read: {error.seen}" if isinstance(error, ShardError) else "the file is missing"


def _line(content: bytes, number: int) -> str:
    lines = content.split(b"\n")
    return _shown(lines[number]) if number < len(lines) else "nothing"


def _shown(content: bytes) -> str:
    text = content.decode("ascii", "backslashreplace")
    return text if len(text) <= 120 else f"{text[:120]}..."


# The archive


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a sample, as found in the archive."""

    name: str
    start: int
    """First byte of its data in the archive."""
    content: bytes

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        return self.name.partition(".")[2]

    @property
    def place(self) -> dict[str, Any]:
        return {"key": self.key, "member": self.extension, "span": (self.start, self.start + len(self.content))}


class _Archive:
    """An archive read once from front to back; what is not as `ShardFile` writes it becomes a fault."""

    def __init__(self, file: BinaryIO, entry: ShardEntry, listed: dict[int, Listed], faults: Faults) -> None:
        self._file, self._listed, self._faults = file, listed, faults
        self._sha256 = hashlib.sha256()
        self._position = 0
        self.num_bytes = os.fstat(file.fileno()).st_size
        self._ends = {self.num_bytes - len(END), entry.bytes - len(END)}
        self.complete = True
        """Every byte belongs to a member or to the end."""

    @property
    def sha256(self) -> str:
        """Hash of all bytes, when all members have been taken."""
        return self._sha256.hexdigest()

    def members(self) -> Iterator[_Member]:
        """Members in their order; behind a damaged header the index tells where the next one is, or a search."""
        lost: int | None = None
        while True:
            start = self._position
            header = self._take(BLOCK)
            described = self._described(header, start)
            ends = described is None and (start in self._ends or len(header) < BLOCK)
            if described is None and not ends:
                lost = start if lost is None else lost
                continue
            if lost is not None:
                self.complete = False
                what = "these bytes belong to no member, for there is no usable header"
                self._faults.add(what, span=(lost, start))
                lost = None
            if described is None:
                self._finish(header, start)
                return
            member = self._member(*described)
            if member is not None:
                yield member

    def _take(self, size: int) -> bytes:
        content = self._file.read(min(size, self.num_bytes - self._position))
        self._sha256.update(content)
        self._position += len(content)
        return content

    def _described(self, header: bytes, start: int) -> tuple[str, int] | None:
        """Name and size of the member that begins here; None if none does, or nothing can be said about it."""
        described = _read_header(header)
        if described is not None:
            return described
        empty_end = start in self._ends and not any(header)
        listed = self._listed.get(start + BLOCK)
        if listed is None or empty_end or start + BLOCK + listed.size > self.num_bytes:
            return None
        span = _difference(header, member_header(listed.name, listed.size), start)
        extension = listed.name.partition(".")[2]
        self._faults.add("a member's header is damaged", key=listed.key, member=extension, span=span)
        return listed.name, listed.size

    def _member(self, name: str, size: int) -> _Member | None:
        member = _Member(name, self._position, self._take(size))
        if len(member.content) < size:
            self.complete = False
            self._faults.add(
                "the archive ends inside a member", **member.place, seen=len(member.content), expected=size
            )
            return None
        start = self._position
        padding = self._take(-size % BLOCK)
        if any(padding):
            span = _difference(padding, bytes(len(padding)), start)
            what = "the empty bytes behind a member are not empty"
            self._faults.add(what, key=member.key, member=member.extension, span=span)
        return member

    def _finish(self, header: bytes, start: int) -> None:
        end = header + self._take(len(END) - len(header))
        if len(end) < len(END):
            self.complete = False
            self._faults.add("the archive has no end", span=(start, start + len(end)), seen=f"{len(end)} bytes")
        if any(end):
            span = _difference(end, bytes(len(end)), start)
            self._faults.add("the empty blocks at the end of the archive are not empty", span=span)
        while self._take(1 << 20):
            pass


def _read_header(header: bytes) -> tuple[str, int] | None:
    """Name and size of a member, if this is to the byte the header that `ShardFile` writes for them."""
    try:
        name, size = header[:NAME_BYTES].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
        return (name, size) if header == member_header(name, size) else None
    except ValueError:
        return None


def _difference(seen: bytes, expected: bytes, start: int) -> tuple[int, int]:
    """First byte that differs, and the one behind the last, where `seen` begins at byte `start` of its file."""
    length = max(len(seen), len(expected))
    one, other = (np.frombuffer(content.ljust(length, b"\0"), np.uint8) for content in (seen, expected))
    places = np.flatnonzero(one != other)
    # Of two that differ in length alone, the longer one's end.
    first, last = (places[0], places[-1]) if len(places) else (min(len(seen), len(expected)), length - 1)
    return start + int(first), start + int(last) + 1


# The samples


class _Samples:
    """A proof of samples in their order, which gathers what the files beside the archive should say."""

    def __init__(
        self, common: ShardProof, entry: ShardEntry, companions: Mapping[str, Content], faults: Faults
    ) -> None:
        self._common, self._faults = common, faults
        self.listed = salvaged_index(held(companions[INDEX]))
        self._packed_checksums = salvaged_checksums(held(companions[CHECKSUMS]))
        self._rows = {" ".join(words): row for row, words in enumerate(self._packed_checksums)}
        images, codec = common.settings.images, common.settings.target_codec
        self._proofs: dict[str, Callable[[bytes], Statistics]] = {
            images.member: _ImageProof(common.height, common.width, images),
            TARGET_MEMBERS[codec]: _TargetProof(common.height, common.width, codec),
            CLASS_INDEX: _prove_class,
        }
        self.keys: list[str] = []
        self.index: list[str] = []
        self.checksums: list[str] = []
        self.mismatches = Faults(entry.name)
        """Members that differ from their stored checksums. Which one is wrong is known when all has been read."""
        self.statistics = Statistics()

    def add(self, members: list[_Member]) -> None:
        """Prove one sample."""
        key = members[0].key
        self._compare_checksums(members)
        self.keys.append(key)
        self.index.append(index_line(Location(one.extension, one.start, len(one.content), one.name) for one in members))
        low, high = self._common.settings.selection.part
        if not KEY.fullmatch(key):
            self._faults.add("a key cannot be used", key=key, expected=f"{KEY_BYTES} of [0-9a-z_-] at most")
        elif not low <= key_place(key) < high:
            self._faults.add("a key is not of the part that was asked for", key=key, seen=key_place(key))
        seen = [member.extension for member in members]
        expected = [name for name in self._common.members if name != CLASS_INDEX or CLASS_INDEX in seen]
        if seen != expected:
            what = "a sample does not have the members that the manifest says"
            self._faults.add(what, key=key, seen=" ".join(seen), expected=" ".join(expected))
        for member in members:
            if member.extension in self._proofs:
                self._prove(member)

    def _compare_checksums(self, members: list[_Member]) -> None:
        line = checksum_line(member.content for member in members)
        listed = self.listed.get(members[0].start)
        # Without an index, samples that were lost before this one shift the numbers of those that follow.
        row = self._rows.get(line, len(self.keys)) if listed is None else listed.row
        packed = self._packed_checksums[row] if row < len(self._packed_checksums) else []
        columns = dict(zip(self._common.members, packed, strict=False))
        for member, seen in zip(members, line.split(" "), strict=True):
            expected = columns.get(member.extension, seen)
            if seen != expected:
                what = "a member's CRC-32 is not that of the packed one"
                self.mismatches.add(what, **member.place, seen=seen, expected=expected)
        self.checksums.append(line)

    def _prove(self, member: _Member) -> None:
        try:
            values = self._proofs[member.extension](member.content)
        except ShardError as error:
            self._faults.add(error.what, **member.place, seen=error.seen, expected=error.expected)
            return
        sizes = {member.extension: member_bytes(member.content)}
        self.statistics = self.statistics.merged(values.model_copy(update={"member_bytes": sizes}))


class _ImageProof:
    """A proof of images: they decode, and have this size and these settings."""

    def __init__(self, height: int, width: int, codec: ImageCodec) -> None:
        self._size, self._codec = (height, width), codec

    def __call__(self, member: bytes) -> Statistics:
        image = self._codec.decode(member, self._size)
        self._codec.check_settings(member)
        return Statistics(planes={"image": image_values(image)})


class _TargetProof:
    """A proof of target blocks of images of this size: they unpack, and their planes can be true."""

    def __init__(self, height: int, width: int, codec: TargetCodec) -> None:
        self._height, self._width, self._codec = height, width, codec

    def __call__(self, block: bytes) -> Statistics:
        planes = unpack_targets(block, self._height, self._width, self._codec)
        known = planes.known
        _check_normals(np.ascontiguousarray(planes.normal.transpose(2, 0, 1)), known)  # three times as fast
        return Statistics(
            planes={
                "depth": depth_values(planes.millimetres),
                "normal": mask_values(known),
                "edge": mask_values(planes.edge),
            }
        )


def _check_normals(codes: NDArray[np.uint8], known: NDArray[np.bool_]) -> None:
    partly = int((known & ~codes.all(axis=0)).sum())
    if partly:
        raise ShardError("normals are known in some coordinates only", seen=f"{partly} pixels", expected="none")
    coordinates = codes.astype(np.int16) - 127  # 127.5 n, less a half: squares and their sum stay below 2^16
    squares = (coordinates * coordinates).view(np.uint16)
    squares = squares[0] + squares[1] + squares[2]
    low, high = ((127.5 * (1 + side * _LENGTH_TOLERANCE)) ** 2 for side in (-1, 1))
    wrong = int((known & ((squares < int(low)) | (squares > int(high)))).sum())
    if wrong:
        raise ShardError("normals are not of unit length", seen=f"{wrong} pixels", expected="none")


def _prove_class(text: bytes) -> Statistics:
    number = int(text) if text.isdigit() and len(text) <= _DIGITS else -1
    if number < 0 or text != b"%d" % number:
        raise ShardError("a class is not a number", seen=_shown(text), expected="an ASCII integer from 0")
    return Statistics(classes=number + 1)
