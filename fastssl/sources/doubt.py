"""Trees that could be one thing or another: asked about, for a wrong guess would lose something without a word."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fastssl.errors import DataError, UsageError
from fastssl.sources.listing import top_names

_LABELS = {
    *("depth", "depths", "depth_left", "depth_right", "depthmap", "depth_maps", "disparity"),
    *("normal", "normals", "normal_map", "normal_maps", "surface_normals"),
    *("seg", "seg_left", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "semantic"),
    *("instance", "instances", "instancesegmentation", "mask", "masks", "groundtruth", "ground_truth", "gt", "gtfine"),
    *("albedo", "boundaries", "contours", "edges"),
}
"""Names, in lower case, of folders that hold a label plane for each image beside them."""

_LOOKED_INTO = 256
"""Folders that are looked into at most."""
_MOST_NAMES = 1000
_DEPTH = 4


def layout_doubt(path: Path) -> UsageError | None:
    """What to ask about a folder of images that no dataset's layout claims; None if it can only be photos."""
    folders = list(islice(_folders(path), _LOOKED_INTO))
    labels = sorted({below for below, _ in folders if Path(below).name.lower() in _LABELS})
    if labels:
        return UsageError(
            "the folder seems to hold label planes beside its images, and no layout knows it",
            where=path,
            seen=", ".join(labels[:3]),
            expected="a tree of a dataset that fastssl knows, at its root",
            hint="give the dataset's root, or its --layout; or say --layout folder to pack every file as a photo",
        )
    at_top = any(below == "" and has_images for below, has_images in folders)
    holders = sorted(below for below, has_images in folders if has_images and below)
    if at_top or len({Path(below).parts[0] for below in holders}) < 2:
        return None
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    return UsageError(
        "the images lie in several folders, which may be classes or may not",
        where=path,
        seen=", ".join(holders[:3]) + more,
        expected="the layout that is meant",
        hint="say --layout classes if each folder is a class, or --layout folder if they are just folders",
    )


def one_file(path: Path) -> DataError:
    """The error for a source that is no folder and no file that a layout reads."""
    kind = "a file"
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a special file (pipe, socket or device)"
    elif path.suffix.lower() in (".zip", ".7z", ".rar", ".zst", ".gz", ".bz2", ".xz"):
        kind = f"an archive ending in {path.suffix}"
    return DataError(
        "the source is one file that no layout reads",
        where=path,
        seen=kind,
        expected="the folder of a dataset, or a .tar archive",
        hint="unpack it, or put it into a folder, and give the folder",
    )


def _folders(top: Path) -> Iterator[tuple[str, bool]]:
    """Folders down to some depth, the nearest first, and whether they hold images themselves."""
    level = [""]
    for _ in range(_DEPTH):
        below: list[str] = []
        for folder in level:
            names = top_names(top / folder, _MOST_NAMES)
            yield folder.rstrip("/"), any(not name.endswith("/") for name in names)
            below += sorted(folder + name for name in names if name.endswith("/"))
        level = below
