"""What lies below a source's folder and is no part of any sample, so that nothing is left out without a word."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from fastssl.errors import DataError
from fastssl.shards import MANIFEST, STATE, PassedOver, Tally
from fastssl.sources.formats import wanting

HIDDEN = "hidden files and folders"
SPECIAL = "special files (pipes, sockets, devices)"
DANGLING = "links that lead nowhere"
PACKED = "folders of packed shards"
PACKING = "folders that a packing writes into, or was interrupted in"
EMPTY = "empty folders"
LOOPS = "links that lead back to a folder above them"


_ENDING = re.compile(r"\.[0-9a-z_+-]{1,12}")


def passed_over(
    top: Path, is_used: Callable[[str], bool], tally: Tally | None = None, *, count_empty: bool = False
) -> dict[str, PassedOver]:
    """The entries below a folder that are no part of a sample, counted by reason.

    Folders are walked and not counted, but for hidden ones and those of a packing, which count as one entry each and
    are not looked into.

    Args:
        is_used: whether a file, by its path below the folder, is part of a sample; asked of regular files only.
        tally: counts that go into the result as well.
        count_empty: count empty folders too, where a folder means something by itself.

    Raises:
        DataError: a folder cannot be listed.
    """
    tally = tally or Tally()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        folder = top / below
        try:
            status = folder.stat()
            own = (status.st_dev, status.st_ino)
            if own in above:
                tally.add(LOOPS, below.rstrip("/"))
                continue
            is_empty = count_empty and below != ""
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_empty = False
                    path = below + entry.name
                    if (reason := reason_against(entry)) is not None:
                        tally.add(reason, path)
                    elif entry.is_dir():
                        waiting.append((f"{path}/", above | {own}))
                    elif not is_used(path):
                        tally.add(ending_reason(entry.name), path)
            if is_empty:
                tally.add(EMPTY, below.rstrip("/"))
        except OSError as error:
            raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error
    return tally.result()


def reason_against(entry: os.DirEntry[str]) -> str | None:
    """Why an entry is passed over whatever it holds; None for folders and regular files to be looked at.

    Raises:
        OSError: the system does not tell what it is.
    """
    if entry.name.startswith("."):
        return HIDDEN
    if (reason := kind_against(entry)) is not None:
        return reason
    if not entry.is_dir():
        return None
    return PACKING if Path(entry.path, STATE).is_dir() else PACKED if is_packed(entry.path) else None


def kind_against(entry: os.DirEntry[str]) -> str | None:
    """Why an entry is passed over if it is neither a folder nor a regular file, nor a link to one; else None."""
    try:
        if entry.is_file() or entry.is_dir():
            return None
        return DANGLING if entry.is_symlink() and not Path(entry.path).exists() else SPECIAL
    except OSError as error:
        if error.errno == errno.ELOOP:
            return DANGLING
        raise


def ending_reason(name: str) -> str:
    """The reason for a regular file that no layout reads, from its name."""
    ending = Path(name).suffix.lower()
    if not ending:
        return "files without an ending"
    if (reader := wanting(ending)) is not None:
        return f"files ending in {ending} ({reader} reads them)"
    return f"files ending in {ending}" if _ENDING.fullmatch(ending) else "files with other endings"


def is_packed(path: str) -> bool:
    """The folder is a dataset that `fastssl shard` finished.

    Raises:
        OSError: its manifest is there and cannot be read.
    """
    manifest = Path(path, MANIFEST)
    try:
        if not stat.S_ISREG(manifest.stat().st_mode):
            return False  # opening a pipe would wait for ever
        with manifest.open("rb") as file:
            return b'"fastssl-shards"' in file.read(256)
    except FileNotFoundError:
        return False
