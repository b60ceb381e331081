"""Files that are complete or absent, whatever happens to the process that writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


@contextmanager
def complete_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it is on the disk, and not at all after an exception.

    A file of that name is replaced in one step. What a killed process leaves behind ends in ``.partial``.
    """
    temporary = path.with_name(path.name + PARTIAL)
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
