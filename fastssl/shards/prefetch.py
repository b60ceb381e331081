"""Packed datasets in a remote store: shards are staged whole in a local cache, ahead of need.

Reading sample by sample would be bound by the store's latency. So a shard is fetched whole, ahead of need where it was
announced, verified by its hash, and read like a local one. Manifest and indexes, about a thousandth of the bytes, are
read anew whenever a dataset is opened: no hash says what they should be, so a kept copy might be an old one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from weakref import WeakSet

from fastssl.errors import FastsslError
from fastssl.shards.cache import BYTES_VARIABLE, Cache, NoRoomError
from fastssl.shards.descriptors import keep_no_longer, keeps
from fastssl.shards.fetch import RemoteFiles
from fastssl.shards.manifest import Manifest, ShardEntry
from fastssl.shards.store import check_size, missing

log = logging.getLogger(__name__)

_FETCHES = 4
"""Shards that a dataset fetches ahead of need at the same time."""
_LOOK_AGAIN_S = 0.25
_folders = WeakSet["RemoteFolder"]()
"""Those of this process."""


class RemoteFolder(RemoteFiles):
    """A packed dataset in a store, its shards through a cache; a `fastssl.shards.store.Store`."""

    max_requests = 32
    """Requests that are worth making at the same time."""

    def __init__(self, url: str, cache: Cache) -> None:
        super().__init__(url)
        self.cache = cache
        self._lock = threading.Lock()
        self._announced: dict[str, ShardEntry] = {}
        self._there: dict[str, int | None] = {}
        """Announced shards that are there, most of them open so that they are kept."""
        self._fetching: dict[str, threading.Thread] = {}
        self._failed: set[str] = set()
        self._looked_at = 0.0
        self._opened: set[str] = set()
        """Shards that were opened since they were announced."""
        self._warned = False
        _folders.add(self)

    def go_on_in_fork(self) -> None:
        """A new start for a forked process, before it reads."""
        self._lock = threading.Lock()  # a thread that held it does not live on in a fork

    def __del__(self) -> None:
        for name in list(self._there):
            self._let_go(name)

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str, Cache]]:
        return RemoteFolder, (self.address(), self.cache)

    @property
    def cache_bytes(self) -> int:
        return self.cache.max_bytes

    def manifest(self) -> Manifest:
        """Read the manifest; raises as that of `RemoteFiles`.

        Raises:
            UsageError: a shard is larger than the cache.
        """
        manifest = super().manifest()
        self.cache.check(self, manifest.shards)
        return manifest

    def check(self, shard: ShardEntry) -> None:
        """Look whether a shard is there and has its size, without fetching it.

        Raises:
            ShardError: it is missing, or has another size. A store that tells no sizes is not doubted.
            DataError: the store does not answer.
        """
        place = self.place(shard.name)
        try:
            size = self.size(shard.name)
        except FileNotFoundError as error:
            raise missing(place, shard) from error
        if size is not None:
            check_size(place, shard, size)

    def max_open(self, shards: list[ShardEntry]) -> int:
        """Shards that may be open at once. No more than the cache holds: an open one keeps its room on the disk."""
        return self.cache.max_bytes // max(shard.bytes for shard in shards)

    def open(self, shard: ShardEntry) -> int:
        """A shard's descriptor; raises as `Cache.open`."""
        descriptor = self.cache.copy(shard)
        if descriptor is None:
            if shard.name in self._opened and not self._warned:
                self._warned = True
                log.warning(
                    "the cache for remote shards is too small: %s is fetched again, while it is still needed; "
                    "set %s higher, or shuffle fewer samples together",
                    self.place(shard.name),
                    BYTES_VARIABLE,
                )
            descriptor = self.cache.open(self, shard)
        with self._lock:
            self._opened |= {shard.name} & self._announced.keys()
        return descriptor

    def prefetch(self, shards: Iterable[ShardEntry]) -> None:
        """Announce which shards are needed now and next, in this order; earlier announcements are forgotten.

        They are fetched in the background, as many as the cache holds, and kept there. One that cannot be fetched is
        an error when it is needed.
        """
        announced = {shard.name: shard for shard in shards}
        with self._lock:
            looked_at = time.monotonic()
            if announced == self._announced and looked_at < self._looked_at + _LOOK_AGAIN_S:
                return
            self._announced, self._looked_at = announced, looked_at
            self._failed &= announced.keys()
            self._opened &= announced.keys()
            for name in self._there.keys() - announced.keys():
                self._let_go(name)
            self._advance()

    def _advance(self) -> None:
        """Keep what is there of the announced, and begin to fetch what is not."""
        # Threads do not survive a fork.
        self._fetching = {name: thread for name, thread in self._fetching.items() if thread.is_alive()}
        if len(self._fetching) == _FETCHES:
            return
        absent = list[ShardEntry]()
        for name, shard in self._announced.items():
            if name in self._there or name in self._fetching or name in self._failed:
                continue
            copy = self.cache.copy(shard, keep=True)
            if copy is None:
                absent.append(shard)
            else:
                self._keep(name, copy)
        for shard in absent:
            if len(self._fetching) == _FETCHES or not self._begin(shard):
                return

    def _begin(self, shard: ShardEntry) -> bool:
        """Fetch a shard unless somebody does; False if there is no room that is not needed earlier."""
        while True:
            try:
                claim = self.cache.claim(shard, considerate=True)
            except NoRoomError:
                last = next(name for name in reversed(self._announced) if name in self._there or name == shard.name)
                if last == shard.name:
                    return False
                self._let_go(last)
            else:
                break
        if claim is not None:
            # A daemon: the process need not wait for it when it ends.
            thread = threading.Thread(target=self._fetch, args=(shard, claim), name="fastssl-stage", daemon=True)
            self._fetching[shard.name] = thread
            thread.start()
        return True

    def _fetch(self, shard: ShardEntry, claim: FileIO) -> None:
        copy = None
        try:
            copy = self.cache.fetch(self, shard, claim, keep=True)
        except FastsslError as error:
            log.warning("a shard could not be fetched ahead of need: %s", error)
        with self._lock, suppress(FastsslError):  # an unusable folder is met by whoever needs a shard
            del self._fetching[shard.name]
            if copy is None:
                self._failed.add(shard.name)
            elif shard.name in self._announced:
                self._keep(shard.name, copy)
            else:
                os.close(copy)
            self._advance()

    def _keep(self, name: str, descriptor: int) -> None:
        kept = keeps(descriptor)
        if not kept:
            os.close(descriptor)
        self._there[name] = descriptor if kept else None

    def _let_go(self, name: str) -> None:
        descriptor = self._there.pop(name)
        if descriptor is not None:
            keep_no_longer(descriptor)


def _go_on_in_fork() -> None:
    for folder in list(_folders):
        folder.go_on_in_fork()


os.register_at_fork(after_in_child=_go_on_in_fork)
