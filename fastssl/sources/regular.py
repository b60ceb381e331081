"""Files that are nothing but files: a pipe would be waited for without an end, and a device may do anything."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import BinaryIO, Literal

from fastssl.errors import DataError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: Path, what: str) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; nothing else is ever opened.

    Args:
        what: what it should be, for the error, as in "an image".

    Raises:
        DataError: it is missing, cannot be read (the system's error is its cause), or is a folder, a pipe, a socket or
            a device.
    """
    # Without a buffer, which would take as long to make as the whole of a label plane to read.
    with _opened(path, what, buffering=0) as file:
        try:
            return file.read()
        except OSError as error:
            raise DataError(f"{what} cannot be read", where=path, seen=error.strerror) from error


def open_file(path: Path, what: str) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        DataError: as `read_file`.
    """
    return _opened(path, what)


def _opened(path: Path, what: str, buffering: Literal[0, -1] = -1) -> BinaryIO:
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            return path.open("rb", buffering)
    except FileNotFoundError as error:
        raise DataError(f"{what} is missing", where=path, seen=error.strerror) from error
    except OSError as error:
        raise DataError(f"{what} cannot be read", where=path, seen=error.strerror) from error
    raise DataError(
        f"{what} cannot be read", where=path, seen=_KINDS.get(kind, "a special file"), expected="a regular file"
    )


def is_regular(path: Path) -> bool:
    """The path leads to a regular file.

    Raises:
        DataError: that cannot be told; some versions of Python's `Path.is_file` would take it for "no".
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """The path leads to a folder.

    Raises:
        DataError: that cannot be told.
    """
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """Kind and rights of what a path leads to, 0 if it leads nowhere."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise DataError("a file cannot be looked at", where=path, seen=error.strerror) from error
