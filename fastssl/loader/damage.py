"""Samples that turn out damaged in a shard: named, counted, replaced by a neighbour, and too many of them refused.

A replacement depends on the sample alone, so a run that is continued, or read by another number of ranks, sees the same
ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import deflate
import numpy as np
from numpy.typing import NDArray

from fastssl.errors import DataError, ShardError
from fastssl.loader.memory import Memory
from fastssl.loader.mixture import Mixture
from fastssl.shards import Allocate, StoredSample, TargetLayout, inflate

log = logging.getLogger(__name__)


class SoundSample(NamedTuple):
    """A sample that looks sound."""

    number: int
    stored: StoredSample


class Damage:
    """The damage that is known in a domain's samples.

    Args:
        samples: of the domain.
        members: those that are read: the image, the targets where planes are wanted, `cls` where classes are.
        max_bad: samples that may be damaged before reading gives up.
        checked: members that are compared with their checksums, which also finds damage that decodes.
    """

    def __init__(
        self, samples: Mixture, members: tuple[str, ...], *, max_bad: int, checked: tuple[str, ...] = ()
    ) -> None:
        self._samples, self._names, self._max_bad, self._checked = samples, members, max_bad, {*checked}
        self._image_codec = samples.image_codec
        self._memory = Memory()
        self.found: dict[int, str] = {}
        """Number and reason of each damaged sample."""

    @property
    def image_member(self) -> str:
        """Name of the member with the image."""
        return self._image_codec.member

    @property
    def target_member(self) -> str:
        """Name of the member with the planes."""
        return self._samples.target_member

    def compare(self, member: str) -> None:
        """Compare this member too with its checksum, from now on."""
        self._checked.add(member)

    def places(self) -> list[str]:
        """Shard, key and reason of each damaged sample, in the order in which they were found."""
        return [f"{self._samples.place(index)}: {reason}" for index, reason in self.found.items()]

    def read(self, indices: Sequence[int]) -> list[SoundSample]:
        """Samples with their numbers; in place of a damaged one the next that is sound, as far as a glance can tell.

        They lie in one piece of memory, which is used again when the last of their members is gone.

        Raises:
            ShardError: too many samples are damaged.
        """
        memory = self._memory.lend(len(indices) * self._samples.most_bytes(self._names))
        read, used = self._samples.read_many(np.asarray(indices, np.int64), self._names, memory)
        allocate = _allocator(memory[used:])
        return [
            self._sound(index, allocate) if stored is None else SoundSample(index, stored)
            for index, stored in zip(indices, self._surely_sound(indices, read), strict=True)
        ]

    def _surely_sound(self, indices: Sequence[int], read: Sequence[StoredSample | None]) -> list[StoredSample | None]:
        """The samples that a glance at many at a time finds sound; a look at each of the others tells what it is."""
        there = {
            k: stored
            for k, (index, stored) in enumerate(zip(indices, read, strict=True))
            if stored is not None and index not in self.found
        }
        images = [stored.members[self.image_member] for stored in there.values()]
        are_plain = self._image_codec.are_plain(images, self._samples.image_size)
        sound: list[StoredSample | None] = [None] * len(indices)
        for (k, stored), is_plain in zip(there.items(), are_plain, strict=True):
            if is_plain and all(self._agrees(indices[k], *member) for member in stored.members.items()):
                sound[k] = stored
        return sound

    def _sound(self, index: int, allocate: Allocate) -> SoundSample:
        while True:
            first = index
            while index in self.found:
                index = self._samples.next(index)
                if index == first:
                    raise ShardError(
                        "every sample of the dataset is damaged, the last one found so for this",
                        where=self._samples.place(index),
                        seen=self.found[index],
                        hint="look at the dataset with fastssl verify",
                    )
            try:
                return SoundSample(index, self._glance(index, allocate))
            except ShardError as error:
                self._record(index, error)

    def examine(self, indices: Sequence[int]) -> bool:
        """Decode samples of a batch that failed; whether any of them is damaged.

        One may be known already, by another batch that was read before it was found out.

        Raises:
            ShardError: too many samples are damaged.
        """
        for index in dict.fromkeys(indices):
            try:
                if index not in self.found:
                    self._decode(self._glance(index, _new_memory))
            except ShardError as error:
                self._record(index, error)
        return not self.found.keys().isdisjoint(indices)

    def _glance(self, index: int, allocate: Allocate) -> StoredSample:
        sample = self._samples.read(index, self._names, allocate)
        # Where only a window is decoded, a larger image would give one that nobody meant.
        self._image_codec.check_header(sample.members[self.image_member], self._samples.image_size)
        for name, content in sample.members.items():
            if not self._agrees(index, name, content):
                seen, expected = deflate.crc32(content.data), self._checksum(index, name)
                raise ShardError(f"{name} is not as it was packed", seen=f"{seen:08x}", expected=f"{expected:08x}")
        return sample

    def _agrees(self, index: int, name: str, content: NDArray[np.uint8]) -> bool:
        """A member has its checksum, or is not compared with it."""
        return name not in self._checked or deflate.crc32(content.data) == self._checksum(index, name)

    def _checksum(self, index: int, name: str) -> int:
        try:
            return self._samples.checksum(index, name)
        except ShardError as error:  # of the file beside the shard: no sample is to blame for it
            seen, expected = error.seen, error.expected
            hint = "copy the dataset again, with the .crc file of each shard; what DALI decodes is compared with it"
            raise DataError(error.what, where=error.where, seen=seen, expected=expected, hint=hint) from error

    def _decode(self, sample: StoredSample) -> None:
        self._image_codec.decode(sample.members[self.image_member], self._samples.image_size)
        if self.target_member in sample.members:
            layout = TargetLayout(*self._samples.image_size)
            out = np.empty(layout.num_bytes, np.uint8)
            inflate(sample.members[self.target_member], layout, out, self._samples.target_codec)

    def _record(self, index: int, error: ShardError) -> None:
        self.found[index] = error.what if error.seen is None else f"{error.what}: {error.seen}"
        place = self._samples.place(index)
        if len(self.found) > self._max_bad:
            raise ShardError(
                error.what if self._max_bad == 0 else f"too many samples are damaged: {error.what}",
                where=place,
                seen=error.seen,
                expected=error.expected if self._max_bad == 0 else f"at most {self._max_bad} damaged samples",
                hint="find all damage with `fastssl verify`, and copy or pack the dataset again",
            ) from error
        log.warning("a damaged sample is replaced by the next one: %s: %s", place, self.found[index])


def _new_memory(num_bytes: int) -> NDArray[np.uint8]:
    return np.empty(num_bytes, np.uint8)


def _allocator(memory: NDArray[np.uint8]) -> Allocate:
    """Pieces of the memory, one behind the other, and new memory when it is full."""
    begun = 0

    def allocate(num_bytes: int) -> NDArray[np.uint8]:
        nonlocal begun
        first, begun = begun, begun + num_bytes
        return memory[first:begun] if begun <= len(memory) else _new_memory(num_bytes)

    return allocate
