"""The local cache of remote shards: bounded, verified, and shared by any number of processes."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EROFS
from io import FileIO
from pathlib import Path

from fastssl.errors import UsageError
from fastssl.faults import machine_error
from fastssl.files import PARTIAL
from fastssl.shards.fetch import LOCAL_FAULTS, RemoteFiles
from fastssl.shards.manifest import ShardEntry
from fastssl.shards.store import missing

FOLDER_VARIABLE = "FASTSSL_CACHE"
BYTES_VARIABLE = "FASTSSL_CACHE_BYTES"
_DEFAULT_BYTES = 50 * 10**9
_POLL_S = 0.02
_BOUND = f"bound the cache for remote shards with {BYTES_VARIABLE}, or move it with {FOLDER_VARIABLE}"
_NAME = re.compile(r"(?P<sha256>[0-9a-f]{64})\.(tar|(?P<coming>[0-9]+)\.lock)")


class Cache:
    """A local folder of shards under their hashes, which any number of processes share.

    A shard has its final name only when all of it was verified. While it is being fetched, a lock file with its size in
    its name keeps the room for it. Complete and coming shards together never take more than `max_bytes`: before one is
    fetched, the least recently used ones are removed. One that is open can be removed too; whoever has it open reads
    on, and the disk has the room back when it is closed.

    Only locks of the kernel are used, which end with their holder, so a process that is killed blocks nobody: one on
    the folder, for all that decides who fetches what and what is removed; an exclusive one on the lock file of each
    shard that is being fetched; and a shared one on each shard that somebody wants to be kept.

    Args:
        folder: made if it is not there. Files of other names in it are left alone.
        max_bytes: what all shards in it may take together.

    Raises:
        UsageError: the folder cannot be made or written to, or the home folder that it lies in is not known.
        MachineError: the disk is full, or another fault of the machine.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = _DEFAULT_BYTES) -> None:
        try:
            self.folder, self.max_bytes = Path(folder).expanduser().absolute(), max_bytes
        except RuntimeError as error:
            raise UsageError(
                "the home folder of this user is not known, so the cache for remote shards has no place",
                where=folder,
                seen=str(error),
                hint=f"set {FOLDER_VARIABLE} to a folder that can be written to",
            ) from error
        with self._alone():
            pass

    def check(self, files: RemoteFiles, shards: Iterable[ShardEntry]) -> None:
        """Make sure that each shard fits in.

        Raises:
            UsageError: one is larger than the whole cache.
        """
        for shard in shards:
            if shard.bytes > self.max_bytes:
                raise UsageError(
                    "a shard is larger than the cache for remote shards",
                    where=files.place(shard.name),
                    seen=f"{shard.bytes} bytes",
                    expected=f"at most {self.max_bytes}",
                    hint=f"set {BYTES_VARIABLE} to several times the size of a shard",
                )

    def open(self, files: RemoteFiles, shard: ShardEntry) -> int:
        """A shard of a dataset, fetched unless it is there; one that is being fetched is waited for.

        Returns:
            A descriptor to read from, which is the caller's.

        Raises:
            DataError: the store does not give it, after several tries.
            ShardError: it is missing there, or not what the manifest says.
            UsageError: it is larger than the whole cache, or the folder cannot be used.
            MachineError: the disk is full, or another fault of the machine.
        """
        self.check(files, [shard])
        while True:
            copy = self.copy(shard)
            if copy is not None:
                return copy
            with suppress(NoRoomError):
                claim = self.claim(shard)
                if claim is not None:
                    return self.fetch(files, shard, claim)
            time.sleep(_POLL_S)

    def copy(self, shard: ShardEntry, *, keep: bool = False) -> int | None:
        """Open the copy that is there, which counts as used now; None if there is none.

        Args:
            keep: ask that it is not removed as long as it is open.
        """
        path = self._path(shard.sha256)
        with self._errors_named():
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return None
            with file:
                if os.fstat(file.fileno()).st_size == shard.bytes:
                    return _used(file.fileno(), keep=keep)
                path.unlink(missing_ok=True)  # somebody has damaged it
        return None

    def claim(self, shard: ShardEntry, *, considerate: bool = False) -> FileIO | None:
        """The right and the room to fetch a shard, which `fetch` takes; None if it is there or somebody fetches it.

        Args:
            considerate: remove no shard that somebody wants to be kept.

        Raises:
            NoRoomError: what could be removed is not enough, for now.
        """
        path = self.folder / f"{shard.sha256}.{shard.bytes}.lock"
        with self._alone():
            if _is_locked(path) or self._path(shard.sha256).exists():
                return None
            self._make_room(shard.bytes, considerate=considerate)
            file = path.open("xb", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def fetch(self, files: RemoteFiles, shard: ShardEntry, claim: FileIO, *, keep: bool = False) -> int:
        """Fetch, verify and open what was claimed; arguments and errors as for `copy` and `open`."""
        partial = self._partial(shard.sha256)
        with claim:
            try:
                files.download(shard, partial, hint=_BOUND)
                with self._alone(), partial.open("rb") as file:
                    descriptor = _used(file.fileno(), keep=keep)
                    partial.replace(self._path(shard.sha256))
            except FileNotFoundError as error:
                raise missing(files.place(shard.name), shard) from error
            finally:
                partial.unlink(missing_ok=True)
                Path(str(claim.name)).unlink(missing_ok=True)
        return descriptor

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _partial(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar{PARTIAL}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread of one process at a time."""
        with self._errors_named():
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    yield
                finally:
                    # Closing is not enough if the process was forked meanwhile: the child has the file open too.
                    fcntl.flock(file, fcntl.LOCK_UN)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in LOCAL_FAULTS - {EROFS}:
                raise machine_error(error, where=self.folder, hint=_BOUND) from error
            raise UsageError(
                "the cache folder for remote shards cannot be used",
                where=self.folder,
                seen=error.strerror,
                hint=f"set {FOLDER_VARIABLE} to a folder that can be written to",
            ) from error

    def _make_room(self, num_bytes: int, *, considerate: bool) -> None:
        copies, taken = list[tuple[int, int, Path]](), 0
        for path in self.folder.iterdir():
            name = _NAME.fullmatch(path.name)
            with suppress(FileNotFoundError):
                if name is None:
                    continue
                if name["coming"] is None:
                    status = path.stat()
                    copies.append((status.st_mtime_ns, status.st_size, path))
                    taken += status.st_size
                elif _is_locked(path):
                    taken += int(name["coming"])
                else:  # whoever was fetching it was killed
                    self._partial(name["sha256"]).unlink(missing_ok=True)
                    path.unlink()
        for path in self._least_needed(copies, taken + num_bytes - self.max_bytes, considerate=considerate):
            path.unlink(missing_ok=True)

    def _least_needed(self, copies: list[tuple[int, int, Path]], excess: int, *, considerate: bool) -> list[Path]:
        """The copies whose removal frees `excess` bytes, the least recently used first; those to be kept come last."""
        chosen = list[Path]()
        if excess <= 0:
            return chosen
        kept = {path for *_, path in copies if _is_locked(path)}
        for _, size, path in sorted(copies, key=lambda copy: (copy[2] in kept, copy[0])):
            if considerate and path in kept:
                break
            chosen.append(path)
            excess -= size
            if excess <= 0:
                return chosen
        raise NoRoomError


class NoRoomError(Exception):
    """The cache has no room for a shard before others that are being fetched are complete, or are no longer kept."""


def default_cache() -> Cache:
    """The cache in the folder of ``FASTSSL_CACHE``, or in the user's; ``FASTSSL_CACHE_BYTES`` bounds it (50 GB).

    Raises:
        UsageError: a variable holds what cannot be used.
    """
    text = os.environ.get(BYTES_VARIABLE) or str(_DEFAULT_BYTES)
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(
            "the size of the cache for remote shards is not a number of bytes",
            where=BYTES_VARIABLE,
            seen=text,
            expected="digits only, and not 0",
        )
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastssl" / "shards"
    return Cache(os.environ.get(FOLDER_VARIABLE) or users, int(text))


def _used(descriptor: int, *, keep: bool) -> int:
    """Note that a file is used now, and whether it is to be kept; another descriptor of it."""
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))
    # All descriptors of an open file share its lock.
    fcntl.flock(descriptor, fcntl.LOCK_SH if keep else fcntl.LOCK_UN)
    return os.dup(descriptor)


def _is_locked(path: Path) -> bool:
    """Somebody is fetching this file, or wants it to be kept."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
