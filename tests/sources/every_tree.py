"""A tree of every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sources.trees import (
    hypersim,
    movi,
    nyuv2,
    photos,
    places365,
    render,
    scenenet,
    structured3d,
    suncg,
    tartanair,
    vkitti2,
    voc,
    webdataset,
)


class Tree(NamedTuple):
    write: Callable[[Path], Path]
    """Writes a dataset of two samples at least below a folder; returns what to open."""
    samples: int
    subsets: tuple[str, ...] = ()
    """Those that it has; the first has samples in this tree."""


TREES = {
    "render": Tree(render.write_tree, 3),
    "scenenet": Tree(scenenet.write_tree, 3, ("train", "val")),
    "suncg": Tree(suncg.write_small_tree, 2),
    "pbrs": Tree(suncg.write_release_tree, 2),
    "hypersim": Tree(hypersim.write_tree, 3, ("train", "val", "test")),
    "structured3d": Tree(structured3d.write_tree, 3, ("train", "val", "test")),
    "movi": Tree(movi.write_tree, 8, ("train", "validation")),
    "vkitti2": Tree(vkitti2.write_tree, 2),
    "tartanair": Tree(tartanair.write_tree, 2),
    "nyuv2": Tree(nyuv2.write_tree, 3, ("train", "test")),
    "voc": Tree(voc.write_tree, 6, ("train", "val", "trainval", "test")),
    "places365": Tree(places365.write_tree, 10, ("train", "val")),
    "webdataset": Tree(webdataset.write_tree, 4),
    "classes": Tree(photos.write_classes_tree, 4, ("train", "val")),
    "folder": Tree(photos.write_folder_tree, 4),
}
