"""Random access to a packed dataset, sample by sample."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssl.addresses import is_remote, local_path, masked
from fastssl.errors import DataError, ShardError
from fastssl.native import pread
from fastssl.shards.cache import Cache, default_cache
from fastssl.shards.codec import TargetCodec
from fastssl.shards.descriptors import OpenShard, Owner, most_open, open_shards
from fastssl.shards.image_codec import ImageCodec
from fastssl.shards.index import CHECKSUMS, INDEX, beside, read_checksums, read_index
from fastssl.shards.local import LocalFolder
from fastssl.shards.manifest import CLASS_INDEX, TARGET_MEMBERS, Manifest, ShardEntry
from fastssl.shards.prefetch import RemoteFolder
from fastssl.shards.store import Store
from fastssl.shards.tar import BLOCK, NAME_BYTES, read_key

_CHECKSUMS_KEPT = 256
"""Shards whose checksums are kept in memory."""

_TOGETHER_FRACTION = 1 / 4
"""Part of the shards that may be open which one call holds open, whatever others open meanwhile."""

Allocate = Callable[[int], NDArray[np.uint8]]
"""A function that gives memory for so many bytes."""


class StoredSample(NamedTuple):
    """Members of a sample, as they are stored."""

    key: str
    class_index: int
    """The class; -1 = none, or not asked for."""
    members: dict[str, NDArray[np.uint8]]
    """The bytes of each member by its name, (size,) each."""


class ShardSet:
    """A packed dataset, samples numbered from 0 in the order of the shards.

    Opening reads the manifest and all indexes and checks that every shard is there and has its size. Of each sample 8
    bytes for each member that the manifest names stay in memory. Shards are opened when they are first touched, and
    read, not mapped: a map would end the process if its file were cut short meanwhile.
    A ShardSet may be shared between threads, and it pickles; the copy opens for itself.

    Args:
        path: a folder, or the address of a remote one that fsspec understands, as ``s3://bucket/rooms``. Remote shards
            are fetched whole when they are announced by `prefetch` or first touched, and then verified by their hash.
        cache: where copies of remote shards are kept; by default `default_cache()`.

    Raises:
        DataError: no such folder, an empty one, no manifest or one that is not valid, no index beside a shard; or a
            store that does not answer.
        ShardError: a shard is missing, is shorter or longer than the manifest says, or its index does not fit it.
        UsageError: the address or the cache cannot be used, or a remote shard is larger than the cache.
    """

    def __init__(self, path: str | PathLike[str], cache: Cache | None = None) -> None:
        self.is_remote = is_remote(path)
        """Its shards are fetched into a cache."""
        self.path: str | Path = masked(fspath(path)) if self.is_remote else local_path(path)
        """Path or address, for messages."""
        self._store: Store = (
            RemoteFolder(fspath(path), cache or default_cache()) if self.is_remote else LocalFolder(local_path(path))
        )
        self.manifest: Manifest = self._store.manifest()
        self._columns = {name: column for column, name in enumerate(self.manifest.members)}
        self._ends = list(accumulate(shard.samples for shard in self.manifest.shards))
        # Of each member 8 bytes: there may be very many samples.
        self._blocks = np.zeros((len(self), len(self._columns)), np.uint32)
        self._sizes = np.zeros((len(self), len(self._columns)), np.uint32)
        self._read_indexes()
        self._start_caches()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_owner", "_checksums")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_caches()

    def _start_caches(self) -> None:
        self._owner = Owner(self._store.max_open(self.manifest.shards))
        self._checksums = lru_cache(_CHECKSUMS_KEPT)(self._read_checksums)

    def _open(self, shard: int) -> OpenShard:
        return open_shards.get(self._owner, shard, self._open_shard)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.manifest.height, self.manifest.width

    @property
    def image_codec(self) -> ImageCodec:
        """Codec of the images, which names their member."""
        return self.manifest.settings.images

    @property
    def has_targets(self) -> bool:
        """Samples have depth, normal and edge."""
        return self.target_member in self._columns

    @property
    def target_codec(self) -> TargetCodec:
        """Codec of the target blocks, if samples have any."""
        return self.manifest.settings.target_codec

    @property
    def target_member(self) -> str:
        """Name of the member with the targets, if samples have any."""
        return TARGET_MEMBERS[self.target_codec]

    @property
    def cache_bytes(self) -> int | None:
        """Room for the shards of a remote dataset; None for a local one."""
        return self._store.cache_bytes

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard."""
        return tuple(shard.samples for shard in self.manifest.shards)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Announce which shards are needed now and next, by number, in this order; earlier announcements are forgotten.

        Remote ones are fetched in the background, as many as the cache holds, and stay there as long as they are
        announced. One that cannot be fetched is an error when it is needed.
        """
        self._store.prefetch(self.manifest.shards[number] for number in shards)

    def shard_name(self, index: int) -> str:
        """File name of the shard that holds this sample."""
        return self.manifest.shards[self._shard(index)].name

    def key(self, index: int) -> str:
        """The sample's key, read from its first member's header."""
        start = self._span(index, 0)[0] - BLOCK
        return read_key(self._open(self._shard(index)).read(start, NAME_BYTES))

    def read(self, index: int, names: Sequence[str], allocate: Allocate) -> StoredSample:
        """Some members of a sample, read at once with its key: one call to the system instead of one for each.

        Args:
            names: of the members; a class is left out where the sample has none.
            allocate: gives the memory in which they will lie.

        Raises:
            ShardError: as `member` and `class_index`.
        """
        shard = self._shard(index)
        blocks, sizes = self._blocks[index].tolist(), self._sizes[index].tolist()
        offsets = [BLOCK * block for block in blocks]
        # From the header that names the key to the end of the last of these members.
        start, stop, places = offsets[0] - BLOCK, offsets[0], list[tuple[str, int, int]]()
        for name in names:
            column = self._columns.get(name, -1)
            if column >= 0 and offsets[column]:
                end = offsets[column] + sizes[column]
                places.append((name, offsets[column] - start, end - start))
                stop = max(stop, end)
            elif name != CLASS_INDEX:
                raise self._lacks(index, name)
        content = allocate(stop - start)
        self._open(shard).read_into(start, content)
        members = {name: content[first:last] for name, first, last in places}
        class_index = self._class(index, members[CLASS_INDEX].tobytes()) if CLASS_INDEX in members else -1
        return StoredSample(read_key(content[:NAME_BYTES].tobytes()), class_index, members)

    def read_many(
        self, indices: NDArray[np.int64], names: Sequence[str], memory: NDArray[np.uint8]
    ) -> tuple[list[StoredSample | None], int]:
        """`read` of many samples in one call of the system each, for which the interpreter's lock is let go once.

        Args:
            indices: (N,) of the samples.
            names: as of `read`.
            memory: in which they will lie, one behind the other.

        Returns:
            The samples, and how many bytes of the memory they have. None in place of one that cannot be read, or for
            which no memory is left: `read` tells what is wrong with it.

        Raises:
            IndexError: there is no such sample.
        """
        for index in indices[(indices < 0) | (indices >= len(self))].tolist():
            raise _no_sample(index, self)
        columns = {name: self._columns[name] for name in names if name in self._columns}
        required = [name != CLASS_INDEX for name in columns]
        if sum(required) < len({*names} - {CLASS_INDEX}):
            return [None] * len(indices), 0
        # Of each sample (N,), of each of its members (N, members), 0 = not there; all of them bytes.
        heads = BLOCK * (self._blocks[indices, 0].astype(np.int64) - 1)
        firsts = BLOCK * self._blocks[indices][:, [*columns.values()]].astype(np.int64)
        lasts = firsts + self._sizes[indices][:, [*columns.values()]]
        sizes = np.maximum(lasts.max(axis=1, initial=0), heads + BLOCK) - heads
        places = np.cumsum(sizes) - sizes
        is_wanted = (places + sizes <= len(memory)) & (firsts[:, required] > 0).all(axis=1)
        is_read = self._read_spans(indices, is_wanted, heads, sizes, memory, places)
        samples: list[StoredSample | None] = [None] * len(indices)
        # As Python's numbers: with NumPy's, of one sample at a time, this takes several times as long.
        begins, ends = ((at - heads[:, None]).tolist() for at in (firsts, lasts))
        starts, stops = places.tolist(), (places + sizes).tolist()
        for k in np.flatnonzero(is_read).tolist():
            content = memory[starts[k] : stops[k]]
            spans = zip(columns, begins[k], ends[k], strict=True)
            samples[k] = _stored({name: content[first:last] for name, first, last in spans if first > 0}, content)
        return samples, int(sizes.sum())

    def _read_spans(
        self,
        indices: NDArray[np.int64],
        is_wanted: NDArray[np.bool_],
        heads: NDArray[np.int64],
        sizes: NDArray[np.int64],
        memory: NDArray[np.uint8],
        places: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Read the wanted samples from `heads` on to their places; which of them were read, (N,)."""
        from fastssl.shards.spans import read_spans  # loads Numba, for which only those who read many should wait

        is_read = np.zeros(len(indices), np.bool_)
        wanted = np.flatnonzero(is_wanted)
        together = max(1, int(_TOGETHER_FRACTION * most_open()))
        for first in range(0, len(wanted), together):
            group = wanted[first : first + together]
            shards = np.searchsorted(self._ends, indices[group], side="right").tolist()
            opened = {}
            for shard in set(shards):
                with suppress(ShardError):  # `read` opens it again, and tells what is wrong with it
                    opened[shard] = self._open(shard)
            group = group[[shard in opened for shard in shards]]
            descriptors = np.array([opened[shard].descriptor for shard in shards if shard in opened], np.int32)
            is_read[group] = read_spans(pread(), descriptors, heads[group], sizes[group], memory, places[group])
        return is_read

    def most_bytes(self, names: Sequence[str]) -> int:
        """Upper bound of the bytes that `read` needs memory for, by the manifest."""
        sizes = self.manifest.statistics.member_bytes
        # The first header, and what fills up a block and heads the next member.
        return sum(2 * BLOCK + sizes[name].max for name in names if name in sizes)

    def member(self, index: int, name: str) -> NDArray[np.uint8]:
        """The bytes of one member, as ``jpg``, ``labels.lz4`` or ``cls``, read-only.

        Raises:
            ShardError: this sample has no such member, or the shard was cut short since it was opened.
        """
        column = self._columns.get(name)
        shard = self._shard(index)
        if column is None or not self._blocks[index, column]:
            raise self._lacks(index, name)
        return np.frombuffer(self._open(shard).read(*self._span(index, column)), np.uint8)

    def _span(self, index: int, column: int) -> tuple[int, int]:
        """Offset and size of a member, in bytes."""
        return BLOCK * int(self._blocks[index, column]), int(self._sizes[index, column])

    def _lacks(self, index: int, name: str) -> ShardError:
        present = [other for other, column in self._columns.items() if self._blocks[index, column]]
        return ShardError(f"a sample has no {name}", where=self.place(index), seen=present)

    def checksum(self, index: int, name: str) -> int:
        """CRC-32 of a member of this sample as it was packed.

        Raises:
            ShardError: this sample has no such member, or the shard's file of checksums cannot be used.
        """
        shard = self._shard(index)
        first = self._ends[shard] - self.manifest.shards[shard].samples
        present = [i for i in self._columns.values() if self._blocks[index, i]]
        try:
            return self._checksums(shard)[index - first][present.index(self._columns[name])]
        except (KeyError, ValueError, IndexError) as error:
            raise ShardError(f"{name} has no checksum", where=self.place(index), seen=str(error)) from error

    def class_index(self, index: int) -> int:
        """The sample's class; -1 if it has none."""
        column = self._columns.get(CLASS_INDEX)
        if column is None or not self._blocks[index, column]:
            return -1
        return self._class(index, self.member(index, CLASS_INDEX).tobytes())

    def _class(self, index: int, text: bytes) -> int:
        if not text.isdigit():
            raise ShardError("a class is not a number", where=self.place(index), seen=repr(text))
        return int(text)

    def place(self, index: int) -> str:
        """Shard and key, for messages."""
        return f"{self.path}/{self.shard_name(index)}: {self.key(index)}"

    def _shard(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise _no_sample(index, self)
        return bisect_right(self._ends, index)

    def close(self) -> None:
        """Close the shards that are open; reading opens them again."""
        open_shards.close(self._owner)

    def _open_shard(self, shard: int) -> OpenShard:
        entry = self.manifest.shards[shard]
        return OpenShard(self._store.open(entry), self._store.place(entry.name))

    def _read_checksums(self, shard: int) -> list[list[int]]:
        """Checksums of each member of each sample of a shard."""
        entry = self.manifest.shards[shard]
        name = beside(entry.name, CHECKSUMS)
        try:
            return read_checksums(self._store.read(name), entry.samples)
        except (FileNotFoundError, ValueError) as error:
            where = self._store.place(name)
            raise ShardError("a shard's checksums cannot be used", where=where, seen=str(error)) from error

    def _read_indexes(self) -> None:
        """Read each shard's index, after a look at the shard itself."""
        firsts = (end - shard.samples for end, shard in zip(self._ends, self.manifest.shards, strict=True))
        with ThreadPoolExecutor(self._store.max_requests) as pool:
            # What was read is kept as numbers at once: all indexes together are ten times as large.
            for _ in pool.map(self._read_index, self.manifest.shards, firsts):
                pass

    def _read_index(self, entry: ShardEntry, first: int) -> None:
        self._store.check(entry)
        name = beside(entry.name, INDEX)
        place = self._store.place(name)
        try:
            content = self._store.read(name)
        except FileNotFoundError:
            raise DataError(
                "a shard has no index",
                where=place,
                hint="pack the dataset with `fastssl shard`, or copy all of its files",
            ) from None
        try:
            offsets, sizes = read_index(content, entry.samples, tuple(self._columns))
        except ValueError as error:
            raise ShardError("a shard's index cannot be used", where=place, seen=str(error)) from error
        _check_index(place, entry, offsets, sizes)
        rows = slice(first, first + entry.samples)
        # A member begins with a block and has a header before it, so no other one has 0 than one that is not there.
        self._blocks[rows] = np.maximum(offsets, 0) // BLOCK
        self._sizes[rows] = sizes


def _stored(members: dict[str, NDArray[np.uint8]], content: NDArray[np.uint8]) -> StoredSample | None:
    """A sample whose first header begins the content; None if its class is no number."""
    text = members[CLASS_INDEX].tobytes() if CLASS_INDEX in members else None
    if text is not None and not text.isdigit():
        return None
    return StoredSample(read_key(content[:NAME_BYTES].tobytes()), -1 if text is None else int(text), members)


def _no_sample(index: int, shards: ShardSet) -> IndexError:
    return IndexError(f"sample {index} of {len(shards)}")


_MOST_BLOCKS = np.iinfo(np.uint32).max
"""Blocks before a member, and bytes of it: archives of 2 TiB, members of 4 GiB."""


def _check_index(place: str | Path, entry: ShardEntry, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    present = offsets >= 0
    wrong = present & ((offsets < BLOCK) | (offsets % BLOCK != 0) | (offsets + sizes > entry.bytes))
    wrong |= (offsets // BLOCK > _MOST_BLOCKS) | (sizes > _MOST_BLOCKS)
    # Every sample has its first member, whose header names the key, and the others follow in their order.
    wrong[:, 0] |= ~present[:, 0]
    stops = np.maximum.accumulate(np.where(present, offsets + sizes, 0), axis=1)
    wrong[:, 1:] |= present[:, 1:] & (offsets[:, 1:] < stops[:, :-1] + BLOCK)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ShardError(
            "a shard's index does not describe samples one after the other",
            where=f"{place}, line {row + 2}",
            seen=f"{sizes[row, column]} bytes at {offsets[row, column]}",
            expected=f"blocks of {BLOCK} within {entry.bytes} bytes, members in their order",
        )
