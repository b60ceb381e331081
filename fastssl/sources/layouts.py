"""All layouts, and which of them a tree on disk has."""

from __future__ import annotations

import difflib
import logging
from os import PathLike
from pathlib import Path
from typing import Protocol

from fastssl.errors import DataError, UsageError
from fastssl.files import escaped
from fastssl.shards import Source
from fastssl.sources.classes import ClassesSource
from fastssl.sources.doubt import layout_doubt, one_file
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

log = logging.getLogger(__name__)


class Layout(Protocol):
    """The class of a layout's sources."""

    @property
    def layout(self) -> str: ...

    def recognise(self, path: Path) -> str | None:
        """The evidence for this layout in a few words, as far as a few looks into folders tell; None if there is none.

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
"""The layouts by name, in the order in which they are tried."""

_STRUCTURED = tuple(
    source.layout for source in _LAYOUTS if source not in (WebDatasetSource, ClassesSource, FolderSource)
)
"""Layouts of known datasets."""
_LEVELS_ABOVE = 3


def open_source(path: str | PathLike[str], layout: str | None = None, *, subset: str | None = None) -> Source:
    """Open a dataset on disk.

    Args:
        path: the dataset's folder, or for some layouts a file.
        layout: a name of `LAYOUTS`; None finds it out from the tree, and logs what it found.
        subset: a split that the layout knows; None = all there is.

    Raises:
        UsageError: there is no such layout, it has no such subset, or the tree leaves the layout in doubt.
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
        layout, evidence = find_layout(path)
        log.info("%s has the layout %s: %s", escaped(str(path)), layout, escaped(evidence))
    elif not path.is_dir() and (layout == FolderSource.layout or not _evidence(path, LAYOUTS[layout])):
        raise one_file(path)
    return LAYOUTS[layout](path, subset=subset)


def find_layout(path: Path) -> tuple[str, str]:
    """The layout of a tree, and what speaks for it.

    Raises:
        UsageError: the tree leaves it in doubt, and a wrong guess would lose classes or label planes.
        DataError: the path is a file that no layout reads.
    """
    for name, source in LAYOUTS.items():
        if source is not FolderSource and (evidence := _evidence(path, source)):
            return name, evidence
    if not path.is_dir():
        raise one_file(path)
    inside = next(
        (
            (name, above)
            for above in path.absolute().parents[:_LEVELS_ABOVE]
            for name in _STRUCTURED
            if _evidence(above, LAYOUTS[name])
        ),
        None,
    )
    if inside is not None:
        name, above = inside
        raise UsageError(
            "the folder is a part of a dataset",
            where=path,
            seen=f"a dataset of the layout {name} in {above}",
            expected="a whole dataset, or a folder that has nothing to do with one",
            hint=f"give {above} as SRC, or say --layout folder to pack the images without labels and classes",
        )
    if (doubt := layout_doubt(path)) is not None:
        raise doubt
    return FolderSource.layout, FolderSource.recognise(path) or ""


def _evidence(path: Path, source: Layout) -> str | None:
    try:
        return source.recognise(path)
    except (DataError, OSError):
        return None  # and if the folder that cannot be listed is needed, the layout that is found says so
