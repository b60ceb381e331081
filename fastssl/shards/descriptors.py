"""Open shards of all datasets of this process, under one bound: a process may have only so many files open.

It is a fraction of what the system allows (``ulimit -n``), since torch, DALI, logs and connections need files too.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastssl.errors import FastsslError, ShardError
from fastssl.faults import machine_error, machine_fault

_MOST_OPEN, _OPEN_FRACTION = 256, 1 / 4
_MOST_KEPT, _KEPT_FRACTION = 128, 1 / 8
"""The bound for shards of remote datasets that are held open only to be kept in the cache."""
_PATIENCE_S = 1.0


def most_open() -> int:
    """Shards that the process may hold open to read from: a quarter of its descriptors, 256 at most."""
    return _bound(_MOST_OPEN, _OPEN_FRACTION)


def most_kept() -> int:
    """Descriptors that the process may spend on keeping shards in the cache: an eighth of them, 128 at most."""
    return _bound(_MOST_KEPT, _KEPT_FRACTION)


def _bound(most: int, fraction: float) -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # asked each time: it can be changed while we run
    return most if allowed == resource.RLIM_INFINITY else max(1, min(most, int(fraction * allowed)))


def unreadable(error: OSError, place: str | Path) -> FastsslError:
    """The error to raise from a system's error about a file of a dataset: the machine's fault, or the file's."""
    fault = machine_fault(error)
    if fault is not None:
        return machine_error(fault, where=place)
    return ShardError("a file of the dataset cannot be read", where=place, seen=error.strerror or str(error))


class OpenShard:
    """An open archive; closed with the last reference to it."""

    def __init__(self, descriptor: int, place: str | Path) -> None:
        self.descriptor, self._place = descriptor, place

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the archive.

        Raises:
            ShardError: it was cut short since it was opened.
            MachineError: the file system does not give them.
        """
        try:
            content = os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise unreadable(error, self._place) from error
        self._check(len(content), offset, size)
        return content

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out`, which saves new memory for every read; raises as `read`."""
        try:
            got = os.preadv(self.descriptor, [out.data], offset)
        except OSError as error:
            raise unreadable(error, self._place) from error
        self._check(got, offset, len(out))

    def _check(self, got: int, offset: int, size: int) -> None:
        if got != size:
            raise ShardError(
                "a shard was cut short while it was in use",
                where=self._place,
                seen=f"{got} bytes at {offset}",
                expected=f"{size}",
            )


_owners = count()


class Owner:
    """A dataset whose shards are open; they are let go with it.

    Args:
        most: of its shards that may be open at once, however many the process may have.
    """

    def __init__(self, most: int) -> None:
        self.number, self.most = next(_owners), most


class OpenShards:
    """The least recently used shards are let go where more would be open than may be.

    One that somebody is reading from stays open until that is done. May be shared between threads; a fork goes on with
    what was open.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._open = OrderedDict[tuple[int, int], OpenShard]()
        self._counts = Counter[int]()
        self._gone, self._closed = deque[int](), deque[int]()
        self._lock = threading.Lock()

    def go_on_in_fork(self) -> None:
        """A new start for a forked process, before it reads."""
        self._lock = threading.Lock()  # a thread that held it does not live on in a fork

    def __len__(self) -> int:
        return len(self._open)

    def get(self, owner: Owner, number: int, open_shard: Callable[[int], OpenShard]) -> OpenShard:
        """Shard `number` of a dataset, opened by `open_shard` if it is not open.

        Raises:
            Exception: whatever `open_shard` raises.
        """
        key = (owner.number, number)
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
                return found
            self._make_room(owner)
        # Not under the lock: a remote shard may have to be fetched first.
        opened = open_shard(number)
        with self._lock:
            found = self._open.get(key)
            if found is None:  # else another thread was faster
                self._make_room(owner)
                found = self._open[key] = opened
                self._count(owner)
        return found

    def close(self, owner: Owner) -> None:
        """Let go of all shards of a dataset; it may go on, and opens them again."""
        self._closed.append(owner.number)
        # Nobody holds the lock for so long, but this thread itself does, if the collector called this under it.
        if self._lock.acquire(timeout=_PATIENCE_S):
            try:
                self._let_go_of_closed()
            finally:
                self._lock.release()

    def _let_go_of_closed(self) -> None:
        while self._closed:
            closed = self._closed.popleft()
            for key in [key for key in self._open if key[0] == closed]:
                self._let_go(key)

    def _count(self, owner: Owner) -> None:
        if owner.number not in self._counts:
            # Called wherever the collector runs, perhaps under our lock; so it only notes.
            weakref.finalize(owner, self._gone.append, owner.number).atexit = False
        self._counts[owner.number] += 1

    def _make_room(self, owner: Owner) -> None:
        """Let go of shards until one more may be open."""
        self._let_go_of_closed()
        while self._gone:
            dead = self._gone.popleft()
            for key in [key for key in self._open if key[0] == dead]:
                del self._open[key]
            del self._counts[dead]
        if self._counts[owner.number] >= owner.most:
            self._let_go(next(key for key in self._open if key[0] == owner.number))
        while len(self._open) >= self._most():
            self._let_go(next(iter(self._open)))

    def _let_go(self, key: tuple[int, int]) -> None:
        del self._open[key]
        self._counts[key[0]] -= 1


open_shards = OpenShards(most_open)
"""The shards that this process has open."""
os.register_at_fork(after_in_child=open_shards.go_on_in_fork)

_keeping = set[int]()


def keeps(descriptor: int) -> bool:
    """Note a descriptor that is held only to keep a shard in the cache; False where the process has enough of them."""
    _keeping.add(descriptor)  # before the look, so that threads side by side cannot exceed the bound
    if len(_keeping) <= most_kept():
        return True
    _keeping.discard(descriptor)
    return False


def keep_no_longer(descriptor: int) -> None:
    """Close a descriptor that `keeps` took."""
    _keeping.discard(descriptor)
    os.close(descriptor)
