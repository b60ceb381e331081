"""Lists and tables beside the images, read as people's editors leave them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from fastssl.files import open_regular


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
