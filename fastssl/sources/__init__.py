"""Datasets as they lie on disk, each layout read by a `Source` of its own."""

from __future__ import annotations

import difflib
from os import PathLike
from pathlib import Path
from typing import Protocol

from fastssl.errors import DataError, UsageError
from fastssl.shards import Source
from fastssl.sources.classes import ClassesSource
from fastssl.sources.folder import FolderSource
from fastssl.sources.hypersim import HypersimSource
from fastssl.sources.movi import MoviSource
from fastssl.sources.nyuv2 import NyuV2Source
from fastssl.sources.places365 import Places365Source
from fastssl.sources.render import RenderSource
from fastssl.sources.scenenet import SceneNetSource
from fastssl.sources.structured3d import Structured3DSource
from fastssl.sources.suncg import PbrsSource, SuncgSource
from fastssl.sources.tartanair import TartanAirSource
from fastssl.sources.vkitti2 import Vkitti2Source
from fastssl.sources.voc import VocSource
from fastssl.sources.webdataset import WebDatasetSource

__all__ = ["LAYOUTS", "ClassesSource", "FolderSource", "RenderSource", "open_source"]


class Layout(Protocol):
    """The class of a layout's sources."""

    @property
    def layout(self) -> str: ...

    def recognise(self, path: Path) -> bool | str | None:
        """What speaks for this layout, in a few words, as far as a few looks into its folders tell; None if nothing.

        Raises:
            DataError, OSError: one of them may not be looked into.
        """

    def __call__(self, path: Path, *, subset: str | None = None) -> Source:
        """Open the dataset, or a subset of it."""


_LAYOUTS: tuple[Layout, ...] = (
    RenderSource,
    SceneNetSource,
    SuncgSource,
    PbrsSource,
    HypersimSource,
    Structured3DSource,
    MoviSource,
    Vkitti2Source,
    TartanAirSource,
    NyuV2Source,
    VocSource,
    Places365Source,
    WebDatasetSource,
    ClassesSource,
    FolderSource,  # any tree of images: stays last
)
LAYOUTS = {source.layout: source for source in _LAYOUTS}
"""By name, in the order in which they are tried."""


def open_source(path: str | PathLike[str], layout: str | None = None, *, subset: str | None = None) -> Source:
    """Open a dataset on disk.

    Args:
        path: the dataset's folder.
        layout: a name of `LAYOUTS`; None finds it out from the tree.
        subset: a split that the layout knows; None = all there is.

    Raises:
        UsageError: there is no such layout, or it has no such subset; the nearest name is offered.
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
    if not path.exists():
        raise DataError("there is no such folder", where=path, expected="the folder of a dataset")
    if layout is None:
        layout = next(name for name, source in LAYOUTS.items() if _is_recognised(path, source))
    return LAYOUTS[layout](path, subset=subset)


def _is_recognised(path: Path, source: Layout) -> bool:
    try:
        return bool(source.recognise(path))
    except (DataError, OSError):
        return False  # and if the folder that cannot be listed is needed, the layout that is found says so
