"""Files of a packed dataset in a remote store, fetched whole, with patience, and verified where a hash is known."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastssl.addresses import masked, remote_address
from fastssl.errors import DataError, FastsslError, MachineError, ShardError
from fastssl.faults import machine_error, machine_fault
from fastssl.shards.filesystem import filesystem_of
from fastssl.shards.manifest import MANIFEST, Manifest, ShardEntry, parse_manifest

T = TypeVar("T")

log = logging.getLogger(__name__)

_TRIES = 5
_FIRST_PAUSE_S = 0.2
"""Pause after a try that failed; each is twice the one before."""
_PATIENCE_S = 60.0
_LEAST_BYTES = 600_000
"""A try has failed when no answer, or less of a shard than this, came within `_PATIENCE_S`."""
_LONGER = 1 << 24
"""Bytes more than the manifest says that are still fetched to be looked at."""
_TEMPORARY = "set TMPDIR to a folder with room for a shard"
LOCAL_FAULTS = {
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


class RemoteFiles:
    """The files of a packed dataset in a store that fsspec knows; a `fastssl.shards.store.StoredFiles`."""

    def __init__(self, url: str) -> None:
        url = remote_address(url)
        self._url, self._query = url, ""
        if url.startswith(("http://", "https://")):  # elsewhere a question mark may be part of a name
            self._url, mark, query = url.partition("?")
            self._query = mark + query
        self._url = self._url.rstrip("/")

    def address(self, name: str = "") -> str:
        """Address of a file, or of the folder."""
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
        """The content of a small file.

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

    def size(self, name: str) -> int | None:
        """Size of a file, in bytes; None if the store does not tell.

        Raises:
            FileNotFoundError: there is none.
            DataError: the store does not answer.
        """
        return _persistently(self.place(name), lambda: _size(self.address(name)))

    def download(self, shard: ShardEntry, out: Path, *, hint: str) -> None:
        """Fetch a shard into a file, and verify it.

        Args:
            hint: against a full disk.

        Raises:
            FileNotFoundError: there is none.
            DataError: the store does not give it, after several tries.
            ShardError: it is not what the manifest says.
            MachineError: there is no room for it.
        """

        def attempt() -> None:
            with _full_disk_named(out.parent, hint):
                size, sha256 = _receive(self.address(shard.name), out, shard.bytes)
            if size != shard.bytes:
                raise _WrongContentError(f"{size} bytes came, the manifest says {shard.bytes}")
            if sha256 != shard.sha256:
                raise _WrongContentError(f"SHA-256 {sha256} came, the manifest says {shard.sha256}")

        _persistently(self.place(shard.name), attempt)

    @contextmanager
    def archive(self, shard: ShardEntry) -> Iterator[BinaryIO]:
        """A copy of a shard as it is in the store, fetched for as long as it is open; no cache takes part.

        Raises:
            FileNotFoundError: there is none.
            DataError: the store does not give it, after several tries; as a `ShardError`, it gives far too much.
            MachineError: there is no room for it.
        """
        with _temporary_folder() as folder:
            path = Path(folder, shard.name)

            def attempt() -> None:
                with _full_disk_named(path.parent, _TEMPORARY):
                    # What is longer than it was packed is wanted as well, so that it can be said by how much.
                    _receive(self.address(shard.name), path, shard.bytes + _LONGER)

            _persistently(self.place(shard.name), attempt)
            with path.open("rb") as file:
                yield file


@contextmanager
def _full_disk_named(folder: Path, hint: str) -> Iterator[None]:
    """A folder that takes no more bytes as the machine's error, with what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise machine_error(error, where=folder, hint=hint) from error
        raise


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="fastssl-")
    except OSError as error:  # also where no folder at all is usable
        raise machine_error(error, where=os.environ.get("TMPDIR"), hint=_TEMPORARY) from error


class _WrongContentError(Exception):
    """A store gave other bytes than the manifest says."""


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
                raise MachineError("the store does not know us", where=place, seen=seen, hint=advice) from error
            fault = _local_fault(error)
            if fault is not None and tries == _TRIES:
                raise machine_error(fault, where=place) from error
            if tries == _TRIES or isinstance(error, PermissionError) or (wrong and seen == before):
                raise (ShardError if wrong else DataError)(
                    "a remote file could not be fetched",
                    where=place,
                    seen=f"{seen} (after {tries} tries)",
                    hint="see whether the store answers, and whether its copy of the dataset is whole",
                ) from error
            log.warning("fetching %s failed, and is tried again: %s", place, seen)
            time.sleep(pause)
            pause, before = 2 * pause, seen


def _local_fault(error: BaseException) -> OSError | MemoryError | None:
    fault = machine_fault(error)
    return None if isinstance(fault, OSError) and fault.errno not in LOCAL_FAULTS else fault


def _size(place: str) -> int | None:
    """Size of a remote file, in bytes; None if the store does not tell."""
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
