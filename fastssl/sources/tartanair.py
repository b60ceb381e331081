"""Layout `tartanair`: TartanAir (the first one), left camera.

    abandonedfactory/Easy/P000/image_left/000000_left.png
    abandonedfactory/Easy/P000/depth_left/000000_left_depth.npy
    abandonedfactory/Easy/P000/seg_left/000000_left_seg.npy

An environment may lie in a folder of its own name, as its archives unpack, or be the folder that is given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import normals_from_depth
from fastssl.shards import Domain
from fastssl.sources.images import read_image
from fastssl.sources.keys import key_of
from fastssl.sources.subsets import checked_subset

LEVELS = ("Easy", "Hard")
CAMERA = Intrinsics(fx=320.0, fy=320.0, cx=320.0, cy=240.0)
"""Of every image."""

_ENVIRONMENT = re.compile(r"[0-9a-z_]+")
_TRAJECTORY = re.compile(r"P[0-9]{3}")
_IMAGE = re.compile(r"[0-9]{6}_left\.png")
_SHAPE = (480, 640)
_FARTHEST = 65.535
"""Metres; what a shard can hold."""


class TartanAirSource:
    """Left images of all environments, levels and trajectories; `abandonedfactory/Easy/P000/000000` refers to one.

    Facts of the format, from castacks/tartanair_tools (README.md, data_type.md, issues 46 and 67):

    - images of 640 x 480, fx = fy = 320, cx = 320, cy = 240: a field of view of 90 degrees about the image's middle, so
      pixels' centres are at index + 0.5.
    - depth: planar z in metres, float32 (the page says 16 bits, the files have 32). The sky is a sphere, some 10,000 m
      away but nearer in `amusement`. What is beyond 65.535 m, not a number or not positive counts as not known.
    - seg: uint8, AirSim's number of each mesh, which is used as its identity; several meshes can share one.
    - normals are not part of it and are computed from the depth.

    Raises:
        DataError: the folder holds no images of this layout.
        UsageError: a subset was asked for; the dataset has no splits of its own.
    """

    layout: str = "tartanair"
    domain: Domain = "synthetic"
    labelled: bool = True
    licence: str = "CC-BY-4.0, as far as known; check the terms"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """An environment, or a folder of some, with a trajectory's left images."""
        try:
            levels = [path / place / level for place in _environments(path) for level in LEVELS]
            return any(
                (level / name / "image_left").is_dir() for level in levels for name in _names(level, _TRAJECTORY)
            )
        except DataError:
            return False

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        if next(self.references(), None) is None:
            raise DataError(
                "the folder holds no left images of TartanAir",
                where=self.path,
                expected="ENVIRONMENT/{Easy,Hard}/PNNN/image_left/NNNNNN_left.png",
            )

    def references(self) -> Iterator[str]:
        """By environment, level, trajectory and number; one folder's names at a time."""
        for place in _environments(self.path):
            for level in LEVELS:
                folder = self.path / place / level
                for trajectory in _names(folder, _TRAJECTORY):
                    for name in _names(folder / trajectory / "image_left", _IMAGE):
                        yield f"{place}{level}/{trajectory}/{name[:6]}"

    def key(self, reference: str) -> str:
        """The reference in lower case, which no other one has."""
        return key_of(f"{reference.lower()}.jpg")

    def read(self, reference: str) -> Record:
        """One image.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        trajectory, _, number = reference.rpartition("/")
        folder = self.path / trajectory
        picture = folder / "image_left" / f"{number}_left.png"
        image = read_image(picture)
        if image.shape[:2] != _SHAPE:
            seen, expected = f"{image.shape[1]} x {image.shape[0]}", f"{_SHAPE[1]} x {_SHAPE[0]}"
            raise DataError("an image does not have TartanAir's size", where=picture, seen=seen, expected=expected)
        metres = _read_array(folder / "depth_left" / f"{number}_left_depth.npy", np.float32)
        meshes = _read_array(folder / "seg_left" / f"{number}_left_seg.npy", np.uint8)
        depth = np.where((metres > 0) & (metres <= _FARTHEST), metres, 0)  # false for NaN
        return Record(
            key=self.key(reference),
            image=image,
            depth=depth,
            normal=normals_from_depth(depth, CAMERA, meshes),
            instance=meshes.astype(np.int32),
            camera=CAMERA,
        )


def _environments(path: Path) -> Iterator[str]:
    """Where levels lie below the path: nothing, or a path that ends in a slash."""
    names = _names(path, _ENVIRONMENT)
    for place in ("", *(place for name in names for place in (f"{name}/", f"{name}/{name}/"))):
        if any((path / place / level).is_dir() for level in LEVELS):
            yield place


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Sorted names in a folder that match; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error


def _read_array(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """A label plane of one image from a .npy file.

    Raises:
        DataError: it is missing, damaged, or of another type or shape.
    """
    try:
        with path.open("rb") as file:
            plane: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError("a label plane is missing", where=path) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError("a label plane does not decode", where=path, seen=str(error)) from error
    if plane.dtype != dtype or plane.shape != _SHAPE:
        raise DataError(
            "a label plane is not what its dataset says",
            where=path,
            seen=f"{plane.dtype} of shape {plane.shape}",
            expected=f"{np.dtype(dtype)} of shape {_SHAPE}",
        )
    return plane
