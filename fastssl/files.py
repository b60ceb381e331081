"""Files that are complete or absent, whatever happens to the process that writes them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


def escaped(text: str) -> str:
    """A file's name as text that any file and terminal takes: a byte that is not UTF-8 becomes ``\\xe9``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


@contextmanager
def complete_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it is on the disk, and not at all after an exception.

    A file of that name is replaced in one step. Each writer has a temporary name of its own; what a killed one leaves
    behind ends in ``.partial``.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
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
