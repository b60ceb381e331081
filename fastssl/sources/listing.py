"""Names in folders, sorted; where a folder may hold any number of them, streamed in bounded memory.

Order is that of the bytes of whole paths, whatever the locale and the file system: a folder's name sorts as if it ended
in a slash. Links are followed. Hidden files and folders, whose names start with a dot, are passed over, and so are
folders that `fastssl shard` writes into or has written, and whatever is no regular file: opening a pipe would wait for
ever. `fastssl.sources.census` counts all that is passed over.
"""

from __future__ import annotations

import heapq
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

from fastssl.errors import DataError, UsageError
from fastssl.sources.census import kind_against, reason_against
from fastssl.sources.images import EXTENSIONS

RUN = 65536
"""Names of one folder in memory at once."""
_BLOCK = 65536
"""Bytes of a spilled run in memory at once."""


def sorted_names(folder: Path) -> Iterator[str]:
    """The images and folders in a folder, sorted; the folders' names end in a slash.

    A folder of more than `RUN` names is sorted in runs, which wait in a temporary file without a name to be merged.

    Raises:
        DataError: the folder cannot be listed.
        UsageError: there is no room for the temporary file.
    """
    names = _names(folder)
    run = sorted(islice(names, RUN))
    if len(run) < RUN:
        yield from map(os.fsdecode, run)
        return
    with ExitStack() as stack:
        bounds = [0]
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            while run:
                file.write(b"\0".join(run) + b"\0")
                bounds.append(file.tell())
                run = sorted(islice(names, RUN))
            file.flush()
        except OSError as error:
            raise UsageError(
                "a large folder's names cannot be sorted on disk",
                where=tempfile.gettempdir(),
                seen=error.strerror,
                hint="make room there, or let TMPDIR name another folder",
            ) from error
        runs = [_spilled(file.fileno(), *run) for run in pairwise(bounds)]
        yield from map(os.fsdecode, heapq.merge(*runs))


def sorted_images(folder: Path) -> Iterator[str]:
    """Paths of all images below a folder, relative to it, sorted.

    Names of one folder at a time are in memory, and of those above it.

    Raises:
        DataError: a folder cannot be listed, or a link leads back to a folder above it.
        UsageError: as `sorted_names`.
    """
    above = [(_identity(folder), "", sorted_names(folder))]
    while above:
        _, path, names = above[-1]
        name = next(names, None)
        if name is None:
            above.pop()
        elif name.endswith("/"):
            path += name
            identity = _identity(folder / path)
            if any(identity == other for other, *_ in above):
                raise DataError("a link leads back to a folder above it", where=folder / path, hint="remove the link")
            above.append((identity, path, sorted_names(folder / path)))
        else:
            yield path + name


def holds_image(folder: Path) -> bool:
    """There is an image somewhere below; stops at the first one found, in no particular order.

    Raises:
        DataError: a folder cannot be listed.
    """
    above = [(_identity(folder), folder, _names(folder))]
    while above:
        _, here, names = above[-1]
        name = next(names, None)
        if name is None:
            above.pop()
        elif name.endswith(b"/"):
            below = here / os.fsdecode(name)
            identity = _identity(below)
            if all(identity != other for other, *_ in above):
                above.append((identity, below, _names(below)))
        else:
            return True
    return False


def top_names(folder: Path, count: int) -> list[str]:
    """As many of a folder's images and folders as asked for, in no particular order; none if it cannot be listed."""
    try:
        return [os.fsdecode(name) for name in islice(_names(folder), count)]
    except DataError:
        return []


def matching_names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Names of files and folders in a folder that match the whole pattern, sorted; none if there is no such folder.

    For folders whose size the dataset bounds.

    Raises:
        DataError: the folder is there and cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if pattern.fullmatch(entry.name) and kind_against(entry) is None
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error


def _names(folder: Path) -> Iterator[bytes]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_image = entry.name.lower().endswith(EXTENSIONS)
                # An image needs no second look where the folder itself says that it is a regular file.
                if is_image and entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                    yield os.fsencode(entry.name)
                elif reason_against(entry) is None:
                    if is_image and entry.is_file():
                        yield os.fsencode(entry.name)
                    elif entry.is_dir():
                        yield os.fsencode(entry.name) + b"/"
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error


def _spilled(file: int, start: int, stop: int) -> Iterator[bytes]:
    """The names of one run, which lies between these offsets; each ends in a zero byte."""
    rest = b""
    while start < stop:
        block = os.pread(file, min(_BLOCK, stop - start), start)
        start += len(block)
        *names, rest = (rest + block).split(b"\0")
        yield from names


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error
    return status.st_dev, status.st_ino
