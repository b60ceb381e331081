"""Layout `tartanair`: TartanAir (Wang et al., IROS 2020), flights through game worlds; the first one, left camera.

    ENVIRONMENT/{Easy,Hard}/PNNN/
        image_left/NNNNNN_left.png          8-bit RGB, 640 x 480
        depth_left/NNNNNN_left_depth.npy    float32, metres along the optical axis
        seg_left/NNNNNN_left_seg.npy        uint8, AirSim's number of each mesh

An environment may lie in a folder of its own name, as its archives unpack, or be the folder that is given.

Origin of these facts: README, `data_type.md` and issues 46 and 67 of the dataset's repository,
castacks/tartanair_tools.

Depth is planar; the page of the types speaks of 16 bits, the files have 32. The sky is a sphere, some 10,000 m away but
nearer in `amusement`. What is beyond 65.535 m, not a number or not positive is not known.

The lens is fx = fy = 320, cx = 320, cy = 240: a field of view of 90 degrees about the image's middle, so centres of
pixels lie at index + 0.5.

Normals are no part of the dataset and are computed from the depth, within meshes.

Instances are the numbers of the meshes, of which several can share one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import normals_from_depth
from fastssl.shards import Domain
from fastssl.sources.images import read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset, first_reference

LEVELS = ("Easy", "Hard")
CAMERA = Intrinsics(fx=320.0, fy=320.0, cx=320.0, cy=240.0)
"""Of every image."""

_ENVIRONMENT = re.compile(r"[0-9a-z_]+")
_TRAJECTORY = re.compile(r"P[0-9]{3}")
_IMAGE = re.compile(r"[0-9]{6}_left\.png")
_SIZE = (640, 480)
_FARTHEST = 65.535
"""Metres; what a shard can hold."""


class TartanAirSource:
    """The left images in one folder; a reference is the path of one, as in `abandonedfactory/Easy/P000/000000`.

    Args:
        path: the folder of the environments, or one environment.
        subset: None; the dataset has no splits of its own.

    Raises:
        UsageError: a subset was asked for.
        DataError: the folder holds no left images.
    """

    layout: ClassVar[str] = "tartanair"
    domain: ClassVar[Domain] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "CC-BY-4.0, as far as known; check the terms"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """An environment, or a folder of some, that has a trajectory with left images."""
        levels = (path / place / level for place in _environments(path) for level in LEVELS)
        return any(
            (level / name / "image_left").is_dir() for level in levels for name in matching_names(level, _TRAJECTORY)
        )

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        first_reference(
            self, "left images of TartanAir", expected="ENVIRONMENT/{Easy,Hard}/PNNN/image_left/NNNNNN_left.png"
        )

    def references(self) -> Iterator[str]:
        """By environment, level, trajectory and number; one folder's names at a time."""
        for place in _environments(self.path):
            for level in LEVELS:
                folder = self.path / place / level
                for trajectory in matching_names(folder, _TRAJECTORY):
                    for name in matching_names(folder / trajectory / "image_left", _IMAGE):
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
        image = read_image(folder / "image_left" / f"{number}_left.png", _SIZE)
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
    names = matching_names(path, _ENVIRONMENT)
    for place in ("", *(place for name in names for place in (f"{name}/", f"{name}/{name}/"))):
        if any((path / place / level).is_dir() for level in LEVELS):
            yield place


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
    if plane.dtype != dtype or plane.shape != _SIZE[::-1]:
        raise DataError(
            "a label plane is not what its dataset says",
            where=path,
            seen=f"{plane.dtype} of shape {plane.shape}",
            expected=f"{np.dtype(dtype)} of shape {_SIZE[::-1]}",
        )
    return plane
