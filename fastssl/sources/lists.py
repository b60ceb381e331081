"""Lists, tables and other small files beside the images: never waited on, and read as people's tools leave them."""

from __future__ import annotations

import errno
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastssl.errors import DataError

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


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
        if error.errno in _NOT_THERE:
            return 0
        raise DataError("a file cannot be looked at", where=path, seen=error.strerror) from error


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; to open a named pipe would be to wait for its writer, for ever.

    Raises:
        OSError: there is no such file, it is of another kind, or it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.ENXIO, "not a regular file", str(path))
    return path.open("rb")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that hold something, without the blanks around them, and their numbers, from 1.

    A byte order mark, the ends of lines of any system and empty lines are what editors leave behind.

    Raises:
        OSError: as `open_regular`, or it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                yield number, text
