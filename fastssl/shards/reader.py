"""Random access to a packed dataset, by memory map."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import Sample
from fastssl.errors import DataError, ShardError
from fastssl.shards.codec import decode_labels
from fastssl.shards.manifest import JPEG, LABEL, LABELS, Manifest, ShardEntry, read_manifest
from fastssl.shards.tar import BLOCK

_MAPS = 256
"""Maps held open at once; each costs a file descriptor, and a process may have only 1024 of them."""


class ShardSet:
    """A packed dataset, samples numbered from 0 in the order of the shards.

    Opening reads the manifest and all indexes and checks that every shard is there and whole: a map of a shard that
    was cut short would end the process at the first read behind its end. Shards are mapped when they are first
    touched. A ShardSet may be shared between threads, and it pickles; the copy maps for itself.

    Raises:
        DataError: no such folder, an empty one, no manifest or one that is not valid, no index beside a shard.
        ShardError: a shard is missing, is shorter or longer than the manifest says, or its index does not fit it.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._columns = {name: column for column, name in enumerate(self.manifest.members)}
        for shard in self.manifest.shards:
            _check_size(self.path / shard.name, shard)
        self._ends = list(accumulate(shard.samples for shard in self.manifest.shards))
        self._offsets = np.full((len(self), len(self._columns)), -1, np.int64)
        self._sizes = np.zeros((len(self), len(self._columns)), np.int32)
        for number, (shard, end) in enumerate(zip(self.manifest.shards, self._ends, strict=True)):
            self._read_index(number, slice(end - shard.samples, end))
        self._open = lru_cache(_MAPS)(self._map)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(_MAPS)(self._map)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.manifest.height, self.manifest.width

    @property
    def has_labels(self) -> bool:
        """Samples have depth, normal and edge."""
        return LABELS in self._columns

    def shard_name(self, index: int) -> str:
        """File name of the shard that holds this sample."""
        return self.manifest.shards[self._shard(index)].name

    def key(self, index: int) -> str:
        """The sample's key, read from its first member's header."""
        start = int(self._offsets[index, 0]) - BLOCK
        name = bytes(self._open(self._shard(index))[start : start + 100]).rstrip(b"\0")
        return name.decode("ascii", "replace").partition(".")[0]

    def member(self, index: int, name: str) -> NDArray[np.uint8]:
        """The bytes of one member, ``jpg``, ``labels.lz4`` or ``cls``: a read-only view into the shard, no copy.

        Raises:
            ShardError: this sample has no such member.
        """
        column = self._columns.get(name)
        shard = self._shard(index)
        if column is None or self._offsets[index, column] < 0:
            raise ShardError(
                f"a sample has no {name}",
                where=f"{self.path / self.manifest.shards[shard].name}: {self.key(index)}",
                seen=[other for other, i in self._columns.items() if self._offsets[index, i] >= 0],
            )
        offset, size = int(self._offsets[index, column]), int(self._sizes[index, column])
        return np.frombuffer(self._open(shard), np.uint8, size, offset)

    def label(self, index: int) -> int:
        """The sample's class; -1 if it has none."""
        column = self._columns.get(LABEL)
        if column is None or self._offsets[index, column] < 0:
            return -1
        text = self.member(index, LABEL).tobytes()
        if not text.isdigit():
            raise ShardError("a class is not a number", where=self.place(index), seen=repr(text))
        return int(text)

    def place(self, index: int) -> str:
        """Shard and key, for messages."""
        return f"{self.path / self.shard_name(index)}: {self.key(index)}"

    def _shard(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return bisect_right(self._ends, index)

    def _map(self, shard: int) -> mmap.mmap:
        entry = self.manifest.shards[shard]
        path = self.path / entry.name
        _check_size(path, entry)  # it may have changed since
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _read_index(self, shard: int, rows: slice) -> None:
        entry = self.manifest.shards[shard]
        path = (self.path / entry.name).with_suffix(".idx")
        try:
            head, *lines = path.read_text("ascii").splitlines()
            if head != f"v1.2 {entry.samples}" or len(lines) != entry.samples:
                raise ValueError(f"{len(lines)} lines under the head {head!r}")
            for row, line in enumerate(lines, rows.start):
                words = line.split(" ")
                for extension, offset, size, _ in zip(*[iter(words)] * 4, strict=True):
                    self._offsets[row, self._columns[extension]] = int(offset)
                    self._sizes[row, self._columns[extension]] = int(size)
        except FileNotFoundError:
            raise DataError(
                "a shard has no index", where=path, do="pack the dataset with `fastssl shard`, or copy all of its files"
            ) from None
        except (OSError, ValueError, KeyError, OverflowError) as error:
            raise ShardError("a shard's index cannot be used", where=path, seen=str(error)) from error
        self._check_index(path, entry, rows)

    def _check_index(self, path: Path, entry: ShardEntry, rows: slice) -> None:
        offsets, sizes = self._offsets[rows], self._sizes[rows]
        present = offsets >= 0
        wrong = present & ((offsets < BLOCK) | (offsets % BLOCK != 0) | (sizes < 0) | (offsets + sizes > entry.bytes))
        # Every sample has its first member; `key` reads that one's header.
        wrong[:, 0] |= ~present[:, 0]
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ShardError(
                "a shard's index points outside of the shard",
                where=f"{path}, line {row + 2}",
                seen=f"{sizes[row, column]} bytes at {offsets[row, column]}",
                expected=f"blocks of {BLOCK} within {entry.bytes} bytes",
            )


def decode_sample(shards: ShardSet, index: int) -> Sample:
    """One sample as arrays, decoded with Pillow and NumPy.

    Raises:
        ShardError: a member is missing or damaged; the error names shard and key.
    """
    image = _decode_jpeg(shards, index)
    label = shards.label(index)
    sample: dict[str, Any] = {"key": shards.key(index), "image": image, "label": None if label < 0 else label}
    if shards.has_labels:
        try:
            planes = decode_labels(shards.member(index, LABELS), *shards.image_size)
        except ShardError as error:
            where = error.where or shards.place(index)
            raise ShardError(error.what, where=where, seen=error.seen, expected=error.expected) from error
        sample.update(zip(("depth", "normal", "edge", "valid"), planes, strict=True))
    return Sample(**sample)


def read_samples(path: str | PathLike[str]) -> Iterator[Sample]:
    """All samples of a packed dataset as arrays, in order; needs neither torch nor DALI.

    Raises:
        DataError, ShardError: as `ShardSet` and `decode_sample`.
    """
    shards = ShardSet(path)
    return (decode_sample(shards, index) for index in range(len(shards)))


def _decode_jpeg(shards: ShardSet, index: int) -> NDArray[np.uint8]:
    try:
        with Image.open(BytesIO(shards.member(index, JPEG).data), formats=["JPEG"]) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise ShardError("a JPEG is damaged", where=shards.place(index), seen=str(error)) from error
    expected = (*shards.image_size, 3)
    if pixels.shape != expected:
        raise ShardError("a JPEG has the wrong size", where=shards.place(index), seen=pixels.shape, expected=expected)
    return pixels


def _check_size(path: Path, entry: ShardEntry) -> None:
    try:
        seen = path.stat().st_size
    except OSError:
        raise ShardError("a shard is missing", where=path, expected=f"{entry.bytes} bytes") from None
    if seen != entry.bytes:
        raise ShardError(
            "a shard is cut short" if seen < entry.bytes else "a shard is longer than it was packed",
            where=path,
            seen=f"{seen} bytes",
            expected=f"{entry.bytes} bytes",
            do="copy it again, or pack the dataset again",
        )
