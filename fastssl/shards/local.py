"""Packed datasets in a local folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastssl.faults import machine_faults_named
from fastssl.files import open_regular, read_regular
from fastssl.shards.descriptors import unreadable
from fastssl.shards.manifest import MANIFEST, Manifest, ShardEntry, read_manifest
from fastssl.shards.store import check_size, missing


class LocalFolder:
    """A packed dataset in a local folder; a `fastssl.shards.store.Store`."""

    max_requests = 1
    cache_bytes = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def place(self, name: str) -> Path:
        return self._path / name

    def manifest(self) -> Manifest:
        """Read the manifest; raises as `read_manifest`.

        Raises:
            MachineError: the file system does not give it.
        """
        with machine_faults_named(self.place(MANIFEST)):
            return read_manifest(self._path)

    def names(self) -> list[str]:
        with machine_faults_named(self._path):
            return sorted(path.name for path in self._path.iterdir())

    @contextmanager
    def archive(self, shard: ShardEntry) -> Iterator[BinaryIO]:
        place = self.place(shard.name)
        with _errors_named(place):
            file = open_regular(place)
        with file:
            yield file

    def read(self, name: str) -> bytes:
        with _errors_named(self.place(name)):
            return read_regular(self.place(name))

    def check(self, shard: ShardEntry) -> None:
        place = self.place(shard.name)
        try:
            with _errors_named(place):
                size = place.stat().st_size
        except FileNotFoundError as error:
            raise missing(place, shard) from error
        check_size(place, shard, size)

    def max_open(self, shards: list[ShardEntry]) -> int:
        return len(shards)

    def open(self, shard: ShardEntry) -> int:
        self.check(shard)  # it may have changed since
        place = self.place(shard.name)
        try:
            with _errors_named(place), open_regular(place) as file:
                return os.dup(file.fileno())
        except FileNotFoundError as error:
            raise missing(place, shard) from error

    def prefetch(self, shards: Iterable[ShardEntry]) -> None:
        pass


@contextmanager
def _errors_named(place: Path) -> Iterator[None]:
    """Errors of the system as ours, but for the one about a file that is not there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(error, place) from error
