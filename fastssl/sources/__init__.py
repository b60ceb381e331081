"""Datasets as they lie on disk, each layout read by a `Source` of its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from fastssl.errors import DataError, UsageError
from fastssl.shards import Source
from fastssl.sources.folder import FolderSource
from fastssl.sources.render import RenderSource

__all__ = ["LAYOUTS", "FolderSource", "RenderSource", "open_source"]


class Layout(NamedTuple):
    """How to open a layout, and how to tell it from the tree."""

    open: Callable[[Path], Source]
    recognise: Callable[[Path], bool]


LAYOUTS: dict[str, Layout] = {
    "render": Layout(RenderSource, lambda path: (path / "render.json").is_file()),
    "folder": Layout(FolderSource, lambda path: True),  # any tree of images: stays last
}
"""In the order in which they are tried."""


def open_source(path: str | PathLike[str], layout: str | None = None) -> Source:
    """Open a dataset on disk.

    Args:
        path: the dataset's folder.
        layout: a name of `LAYOUTS`; None finds it out from the tree.

    Raises:
        UsageError: there is no such layout; the nearest name is offered.
        DataError: there is no such folder, or it does not hold a dataset of this layout.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        nearest = difflib.get_close_matches(layout, LAYOUTS, n=1)
        names = ", ".join(LAYOUTS)
        raise UsageError(
            "there is no such layout",
            seen=layout,
            expected=f"{nearest[0]!r}? All names: {names}" if nearest else f"one of: {names}",
        )
    if not path.is_dir():
        raise DataError("there is no such folder", where=path, expected="the folder of a dataset")
    if layout is None:
        layout = next(name for name, candidate in LAYOUTS.items() if candidate.recognise(path))
    return LAYOUTS[layout].open(path)
