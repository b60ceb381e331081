"""The interface of the place where a packed dataset lies, be it a folder or a store in the net."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from fastssl.errors import ShardError
from fastssl.shards.manifest import Manifest, ShardEntry


class StoredFiles(Protocol):
    """The files of a packed dataset as they are. It travels to worker processes, so it pickles.

    Its methods raise `MachineError` where the file system does not give a file, and `DataError` where a store does not
    answer: neither says anything about the dataset.
    """

    def place(self, name: str) -> str | Path:
        """Path or address of a file, for messages."""

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            DataError: there is none, or it is not valid.
        """

    def names(self) -> list[str] | None:
        """Names of all that is in the folder; None where the store does not list them."""

    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: there is none.
            ShardError: it is no file.
        """

    def archive(self, shard: ShardEntry) -> AbstractContextManager[BinaryIO]:
        """A shard as it is, whatever its size; raises as `read`."""


class Store(StoredFiles, Protocol):
    """A packed dataset that is read sample by sample."""

    @property
    def max_requests(self) -> int:
        """Requests that are worth making at the same time."""

    @property
    def cache_bytes(self) -> int | None:
        """Size of the cache that shards pass through; None if they are read where they lie."""

    def max_open(self, shards: list[ShardEntry]) -> int:
        """Number of shards that may be open at once."""

    def check(self, shard: ShardEntry) -> None:
        """Look whether a shard is there and has its size.

        Raises:
            ShardError: it is missing, or has another size.
        """

    def open(self, shard: ShardEntry) -> int:
        """A descriptor to read a shard from, which is the caller's.

        Raises:
            ShardError: it is missing, or not what the manifest says.
        """

    def prefetch(self, shards: Iterable[ShardEntry]) -> None:
        """Announce which shards are needed now and next, in this order; earlier announcements are forgotten."""


def missing(place: str | Path, shard: ShardEntry) -> ShardError:
    """The error for a shard that is not there."""
    return ShardError("a shard is missing", where=place, expected=f"{shard.bytes} bytes")


def check_size(place: str | Path, shard: ShardEntry, seen: int) -> None:
    """Compare a shard's size with the manifest.

    Raises:
        ShardError: it is shorter or longer.
    """
    if seen != shard.bytes:
        raise ShardError(
            "a shard is cut short" if seen < shard.bytes else "a shard is longer than it was packed",
            where=place,
            seen=f"{seen} bytes",
            expected=f"{shard.bytes} bytes",
            hint="copy it again, or pack the dataset again",
        )
