"""Packed datasets in a remote store: shards are staged whole in a bounded local cache that several processes share.

Reading sample by sample would be bound by the store's latency. So a shard is fetched whole, ahead of need where it was
announced, verified by its hash, and read like a local one. Manifest and indexes, about a thousandth of the bytes, are
read anew whenever a dataset is opened: no hash says what they should be, so a kept copy might be an old one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastssl.addresses import masked, remote_address
from fastssl.errors import DataError, FastsslError, MachineError, ShardError, UsageError
from fastssl.faults import machine_error, machine_fault
from fastssl.files import PARTIAL
from fastssl.shards.descriptors import keep_no_longer, keeps
from fastssl.shards.filesystem import filesystem_of
from fastssl.shards.manifest import MANIFEST, Manifest, ShardEntry, parse_manifest
from fastssl.shards.store import check_size, missing

T = TypeVar("T")

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "FASTSSL_CACHE"
BYTES_VARIABLE = "FASTSSL_CACHE_BYTES"
_DEFAULT_BYTES = 50 * 10**9

_TRIES = 5
_FIRST_PAUSE_S = 0.2
"""After a try that failed; each pause is twice the one before."""
_PATIENCE_S = 60.0
_LEAST_BYTES = 600_000
"""A try has failed when no answer, or less of a shard than this, came within `_PATIENCE_S`."""
_FETCHES = 4
"""Shards that a dataset fetches ahead of need at the same time."""
_POLL_S = 0.02
_LOOK_AGAIN_S = 0.25

_LONGER = 1 << 24
"""Bytes more than the manifest says that are still fetched to be looked at."""
_BOUND = f"bound the cache for remote shards with {BYTES_VARIABLE}, or move it with {FOLDER_VARIABLE}"
_TEMPORARY = "set TMPDIR to a folder with room for a shard"
_LOCAL = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
}
"""Errors of this machine, met while something came from a store; those of the net or of a right may be the store's."""

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
                do=f"set {FOLDER_VARIABLE} to a folder that can be written to",
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
                    do=f"set {BYTES_VARIABLE} to several times the size of a shard",
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
        place, partial = files.place(shard.name), self._partial(shard.sha256)
        with claim:
            try:
                address = files.address(shard.name)
                _persistently(place, lambda: _download(address, shard, partial))
                with self._alone(), partial.open("rb") as file:
                    descriptor = _used(file.fileno(), keep=keep)
                    partial.replace(self._path(shard.sha256))
            except FileNotFoundError as error:
                raise missing(place, shard) from error
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
            if error.errno in _LOCAL - {errno.EROFS}:
                raise machine_error(error, where=self.folder, do=_BOUND) from error
            raise UsageError(
                "the cache folder for remote shards cannot be used",
                where=self.folder,
                seen=error.strerror,
                do=f"set {FOLDER_VARIABLE} to a folder that can be written to",
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
        """Those whose removal frees `excess` bytes, the least recently used first; what is to be kept comes last."""
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
    """In the folder that ``FASTSSL_CACHE`` names, or in the user's; ``FASTSSL_CACHE_BYTES`` bounds it (50 GB).

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


class RemoteFiles:
    """The files of a packed dataset in a store that fsspec knows."""

    def __init__(self, url: str) -> None:
        url = remote_address(url)
        self._url, self._query = url, ""
        if url.startswith(("http://", "https://")):  # elsewhere a question mark may be part of a name
            self._url, mark, query = url.partition("?")
            self._query = mark + query
        self._url = self._url.rstrip("/")

    def address(self, name: str = "") -> str:
        """Of a file, or of the folder."""
        return f"{self._url}/{name}".rstrip("/") + self._query

    def place(self, name: str) -> str:
        """Address of a file for messages, without secrets."""
        return masked(f"{self._url}/{name}")

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            DataError: there is none, it is not valid, or the store does not answer.
            UsageError: the address cannot be used.
        """
        place = self.place(MANIFEST)
        try:
            return parse_manifest(self.read(MANIFEST), place)
        except FileNotFoundError as error:
            raise DataError(
                "there is no manifest", where=place, expected="a folder written by `fastssl shard`"
            ) from error

    def read(self, name: str) -> bytes:
        """All of a small file.

        Raises:
            FileNotFoundError: there is none.
            DataError: the store does not give it, after several tries.
        """
        return _persistently(self.place(name), lambda: _read(self.address(name)))

    def names(self) -> list[str] | None:
        """Names of all files of the folder; None where the store does not list them.

        Raises:
            DataError: the store does not answer.
        """
        if self._url.startswith(("http://", "https://")):
            return None
        try:
            return _persistently(self.place(""), lambda: _names(self.address()))
        except DataError as error:
            if isinstance(error.__cause__, PermissionError | NotImplementedError):
                return None  # a right to read is no right to list
            raise

    @contextmanager
    def archive(self, shard: ShardEntry) -> Iterator[BinaryIO]:
        """A copy of a shard as it is in the store, fetched for as long as it is open; no cache takes part.

        Raises:
            FileNotFoundError: there is none.
            DataError: the store does not give it, after several tries; as a `ShardError`, it gives far too much.
            MachineError: there is no room for it.
        """
        place, address = self.place(shard.name), self.address(shard.name)
        with _temporary_folder() as folder:
            path = Path(folder, shard.name)

            def receive() -> None:
                with _full_disk_named(path.parent, _TEMPORARY):
                    # What is longer than it was packed is wanted as well, so that it can be said by how much.
                    _receive(address, path, shard.bytes + _LONGER)

            _persistently(place, receive)
            with path.open("rb") as file:
                yield file


class RemoteFolder(RemoteFiles):
    """A packed dataset in a store, its shards through a cache; a `fastssl.shards.store.Store`."""

    max_requests = 32
    """That are worth making at the same time."""

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
        """Since they were announced."""
        self._warned = False

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
        place, address = self.place(shard.name), self.address(shard.name)
        try:
            size = _persistently(place, lambda: _size(address))
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


@contextmanager
def _full_disk_named(folder: Path, do: str) -> Iterator[None]:
    """A folder that takes no more bytes as the machine's error, with what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise machine_error(error, where=folder, do=do) from error
        raise


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="fastssl-")
    except OSError as error:  # also where no folder at all is usable
        raise machine_error(error, where=os.environ.get("TMPDIR"), do=_TEMPORARY) from error


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


class _WrongContentError(Exception):
    """What came is not what the manifest says."""


def _persistently(place: str, attempt: Callable[[], T]) -> T:
    """The result of an attempt that may fail several times.

    Raises:
        MachineError: a fault of this machine stays, or it has no credentials.
        FileNotFoundError: at once.
        DataError: it failed too often, or is forbidden.
        ShardError: what came was wrong too often, or twice in the same way.
    """
    pause, before = _FIRST_PAUSE_S, ""
    tries = 0
    while True:
        tries += 1
        try:
            return attempt()
        except (FastsslError, FileNotFoundError):
            raise
        except Exception as error:  # each store's package has its own errors
            seen, wrong = masked(str(error)) or type(error).__name__, isinstance(error, _WrongContentError)
            if type(error).__name__.endswith("CredentialsError"):  # of botocore, which need not be installed
                advice = "give credentials as its package wants them"
                raise MachineError("the store does not know us", where=place, seen=seen, do=advice) from error
            fault = _local_fault(error)
            if fault is not None and tries == _TRIES:
                raise machine_error(fault, where=place) from error
            if tries == _TRIES or isinstance(error, PermissionError) or (wrong and seen == before):
                raise (ShardError if wrong else DataError)(
                    "a remote file could not be fetched",
                    where=place,
                    seen=f"{seen} (after {tries} tries)",
                    do="see whether the store answers, and whether its copy of the dataset is whole",
                ) from error
            log.warning("fetching %s failed, and is tried again: %s", place, seen)
            time.sleep(pause)
            pause, before = 2 * pause, seen


def _local_fault(error: BaseException) -> OSError | MemoryError | None:
    fault = machine_fault(error)
    return None if isinstance(fault, OSError) and fault.errno not in _LOCAL else fault


def _size(place: str) -> int | None:
    """Of a remote file, in bytes; None if the store does not tell."""
    filesystem, path = _filesystem(place)
    try:
        size: int | None = filesystem.info(path, timeout=_PATIENCE_S)["size"]
    except FileNotFoundError as error:
        # fsspec's HTTP says so whatever went wrong; its cause tells what did.
        if error.__cause__ is None or getattr(error.__cause__, "status", None) == 404:
            raise
        raise error.__cause__ from None
    return size


def _read(place: str) -> bytes:
    filesystem, path = _filesystem(place)
    content: bytes = filesystem.cat_file(path, timeout=_PATIENCE_S)
    return content


def _names(address: str) -> list[str]:
    filesystem, path = _filesystem(address)
    filesystem.invalidate_cache()
    return [name.rstrip("/").rpartition("/")[2] for name in filesystem.ls(path, detail=False)]


def _download(address: str, shard: ShardEntry, partial: Path) -> None:
    """Fetch a shard once, and compare."""
    with _full_disk_named(partial.parent, _BOUND):
        size, sha256 = _receive(address, partial, shard.bytes)
    if size != shard.bytes:
        raise _WrongContentError(f"{size} bytes came, the manifest says {shard.bytes}")
    if sha256 != shard.sha256:
        raise _WrongContentError(f"SHA-256 {sha256} came, the manifest says {shard.sha256}")


def _receive(address: str, out: Path, most: int) -> tuple[int, str]:
    """Fetch a file once, of at most so many bytes; its size and SHA-256."""
    filesystem, path = _filesystem(address)
    out.unlink(missing_ok=True)  # what a try that was given up may still write to
    future = asyncio.run_coroutine_threadsafe(_get_file(filesystem, path, out, most), filesystem.loop)
    try:
        future.result()
        with out.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        future.cancel()


async def _get_file(filesystem: Any, path: str, partial: Path, most: int) -> None:
    """Download into a local file as long as enough comes, and not too much."""
    from fsspec.callbacks import Callback

    def check(*_: int | None) -> None:
        if partial.exists() and partial.stat().st_size > most:
            raise _WrongContentError(f"more than {most} bytes came, the manifest says fewer")

    arrived, before = Callback(hooks={"check": check}), 0
    download = asyncio.ensure_future(filesystem._get_file(path, str(partial), callback=arrived))
    try:
        while not (await asyncio.wait([download], timeout=_PATIENCE_S))[0]:
            if arrived.value - before < _LEAST_BYTES:
                raise TimeoutError(f"{arrived.value - before} bytes came in {_PATIENCE_S:g} s")
            before = arrived.value
        download.result()
    finally:
        download.cancel()
        await asyncio.wait([download], timeout=_PATIENCE_S)  # it may tidy up


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system for an address, one that can be awaited, and the path in it."""
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    filesystem, path = filesystem_of(address, for_reading=True)
    return filesystem if filesystem.async_impl else AsyncFileSystemWrapper(filesystem), path
