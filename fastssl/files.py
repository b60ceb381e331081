"""Files that are complete or absent, whatever happens to the process that writes them."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastssl.errors import UsageError
from fastssl.errors import escaped as escaped
from fastssl.native import begin_to_store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""
_BUFFER = 1 << 12
"""Bytes; larger pieces go past the buffer, without a copy and with their errors at once."""
_STORED_AT_ONCE = 1 << 23
"""Bytes that the system is told of together."""


@contextmanager
def complete_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it is on the disk, and not at all after an exception.

    A file of that name is replaced in one step. Each writer has a temporary name of its own; what a killed one leaves
    behind ends in ``.partial``.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with BufferedWriter(_StoredEarly(temporary), _BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _StoredEarly(FileIO):
    """A file that goes to the disk while it is written, so that nobody waits for all of it at the end.

    Of a shard of 65 MB the end took 40 ms where two workers wrote, and takes 5 on the same disk.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self._begun = self._written = 0

    def write(self, content: ReadableBuffer, /) -> int:
        num_bytes = super().write(content)
        self._written += num_bytes
        if self._written - self._begun >= _STORED_AT_ONCE:
            begin_to_store(self.fileno(), self._begun, self._written - self._begun)
            self._begun = self._written
        return num_bytes


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading; a pipe would be waited for without an end, and a device may do anything.

    Raises:
        OSError: there is no such file, it is of another kind, or it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.ENXIO, "not a regular file", str(path))
    return path.open("rb")


def read_regular(path: Path) -> bytes:
    """All of a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """The only process that works on a folder, as long as the block lasts; the folder is made if it is not there.

    The kernel's lock ends with its holder, so a killed process blocks nobody. File systems without locks (some network
    ones) protect nothing.

    Args:
        what: the work, for the message: "packing".

    Raises:
        UsageError: another process is at it.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another {what} works on the folder right now",
                where=folder,
                hint="wait until it has ended, or choose another folder",
            ) from None
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(descriptor)
