"""Datasets as they lie on disk, each layout read by a `Source` of its own.

A worker that packs one layout loads no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastssl.lazy import loader_of

if TYPE_CHECKING:
    from fastssl.sources.classes import ClassesSource
    from fastssl.sources.folder import FolderSource
    from fastssl.sources.layouts import LAYOUTS, find_layout, open_source
    from fastssl.sources.render import RenderSource

__all__ = ["LAYOUTS", "ClassesSource", "FolderSource", "RenderSource", "find_layout", "open_source"]

_HOMES = {
    "LAYOUTS": "fastssl.sources.layouts",
    "find_layout": "fastssl.sources.layouts",
    "open_source": "fastssl.sources.layouts",
    "ClassesSource": "fastssl.sources.classes",
    "FolderSource": "fastssl.sources.folder",
    "RenderSource": "fastssl.sources.render",
}

__getattr__ = loader_of(__name__, _HOMES)
