"""Layout `tartanair`: TartanAir (Wang et al., IROS 2020), flights through game worlds; the first one, left camera.

    ENVIRONMENT/{Easy,Hard}/PNNN/
        image_left/NNNNNN_left.png          8-bit RGB, 640 x 480
        depth_left/NNNNNN_left_depth.npy    float32, metres along the optical axis
        seg_left/NNNNNN_left_seg.npy        uint8, AirSim's number of each mesh

An environment may lie in a folder of its own name, as its archives unpack. Given is the folder of the environments,
one environment, a level of it, or one trajectory.

Origin of these facts: README, `data_type.md` and issues 46 and 67 of the dataset's repository,
castacks/tartanair_tools.

Depth is planar; the page of the types speaks of 16 bits, the files have 32, but every value in them is one of 16 bits:
its steps are 2 mm at 2 m, 4 mm at 5 m and 16 mm at 20 m. The sky is a sphere, some 10,000 m away but nearer in
`amusement`. What is beyond 65.535 m, not a number or not positive is not known.

The lens is fx = fy = 320, cx = 320, cy = 240: a field of view of 90 degrees about the image's middle, so centres of
pixels lie at index + 0.5.

Normals are no part of the dataset and are computed from the depth, within meshes. Steps are those of float16 where it
holds most of an image's depth, and of float32 otherwise. A wall is right to 0.04 degrees in the mean, at any distance.

Instances are the numbers of the meshes, of which several can share one. They are rendered, the sky's among them: no
pixel is without one, and a border is drawn once.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.files import read_regular
from fastssl.geometry import normals_from_depth
from fastssl.shards import DomainName, PassedOver
from fastssl.sources import census
from fastssl.sources.images import read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset, first_reference

LEVELS = ("Easy", "Hard")
CAMERA = Intrinsics(fx=320.0, fy=320.0, cx=320.0, cy=240.0)
"""The camera of every image."""

_LEVEL = re.compile("|".join(LEVELS))
_ENVIRONMENT = re.compile(r"[0-9a-z_]+")
_TRAJECTORY = re.compile(r"P[0-9]{3}")
_IMAGE = re.compile(r"[0-9]{6}_left\.png")
_FILE = re.compile(
    r"(?P<trajectory>(?:.*/)?)(?:(?:image_left/(?P<image>[0-9]{6})_left\.png)"
    r"|(?:depth_left/(?P<depth>[0-9]{6})_left_depth\.npy)|(?:seg_left/(?P<seg>[0-9]{6})_left_seg\.npy)"
    r"|(?:image_right/[0-9]{6}_right\.png)|(?:(?P<right>depth|seg)_right/[0-9]{6}_right_(?P=right)\.npy)"
    r"|(?:flow/[0-9]{6}_[0-9]{6}_(?:flow|mask)\.npy)|(?:pose_(?:left|right)\.txt))"
)
"""All files of the dataset; those with a number are read."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SIZE = (640, 480)
_FARTHEST = 65.535
"""Metres; what a shard can hold."""


class TartanAirSource:
    """The left images in one folder; a reference is the path of one, as in `abandonedfactory/Easy/P000/000000`.

    Args:
        path: the folder of the environments, one environment, its level `Easy` or `Hard`, or one trajectory.
        subset: None; the dataset has no splits of its own.

    Raises:
        UsageError: a subset was asked for.
        DataError: the folder holds no left images.
    """

    layout: ClassVar[str] = "tartanair"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "CC-BY-4.0, as far as known; check the terms"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """Left images of a trajectory, at any of the places that `path` may be."""
        for trajectory in _trajectories(path):
            if images := _images(path / trajectory):
                return f"{trajectory}image_left has {images[0]}"
        return None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        first_reference(
            self, "left images of TartanAir", expected="ENVIRONMENT/{Easy,Hard}/PNNN/image_left/NNNNNN_left.png"
        )

    def references(self) -> Iterator[str]:
        """Frames in the order of environment, level, trajectory and number; one folder's names at a time."""
        for trajectory in _trajectories(self.path):
            for name in _images(self.path / trajectory):
                yield f"{trajectory}{name[:6]}"

    def passed_over(self) -> dict[str, PassedOver]:
        """Files below the folder that are not of the dataset, and depth and segmentation without an image."""
        trajectories = set(_trajectories(self.path))
        images = lru_cache(maxsize=1)(lambda trajectory: set(_images(self.path / trajectory)))

        def is_used(file: str) -> bool:
            parts = _FILE.fullmatch(file)
            if parts is None or parts["trajectory"] not in trajectories:
                return False
            number = parts["image"] or parts["depth"] or parts["seg"]
            return number is None or f"{number}_left.png" in images(parts["trajectory"])

        return census.passed_over(self.path, is_used)

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
            normal=normals_from_depth(depth, CAMERA, meshes, step=_steps(depth)),
            instance=meshes.astype(np.int32),
            camera=CAMERA,
        )


def _trajectories(path: Path) -> Iterator[str]:
    """Where trajectories lie below the path, as paths that end in a slash; the empty one is the path itself."""
    if _images(path):
        yield ""
    for level in _levels(path):
        for name in matching_names(path / level, _TRAJECTORY):
            yield f"{level}{name}/"


def _levels(path: Path) -> Iterator[str]:
    """The path itself, and levels of it or of environments below it."""
    yield ""
    names = matching_names(path, _ENVIRONMENT)
    for place in ("", *(place for name in names for place in (f"{name}/", f"{name}/{name}/"))):
        for level in matching_names(path / place, _LEVEL):
            yield f"{place}{level}/"


def _images(trajectory: Path) -> list[str]:
    return matching_names(trajectory / "image_left", _IMAGE)


def _steps(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Metres between neighbouring values of the type that holds most of the depth, whatever it is stored in."""
    half = depth.astype(np.float16)
    is_half = 2 * np.count_nonzero((half == depth) & (depth > 0)) > np.count_nonzero(depth)
    return np.spacing(half if is_half else depth).astype(np.float32)


def _read_array(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """A label plane of one image from a .npy file.

    Raises:
        DataError: it is missing, damaged, or of another type or shape.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise DataError("a label plane is missing", where=path) from error
    except OSError as error:
        raise DataError("a label plane cannot be read", where=path, seen=error.strerror) from error
    try:
        plane = _decoded(content)
    except Exception as error:  # NumPy raises nearly any kind of exception for a damaged header.
        seen = str(error) or type(error).__name__
        raise DataError("a label plane does not decode", where=path, seen=seen) from error
    if plane.dtype != dtype or plane.shape != _SIZE[::-1]:
        raise DataError(
            "a label plane is not what its dataset says",
            where=path,
            seen=f"{plane.dtype} of shape {plane.shape}",
            expected=f"{np.dtype(dtype)} of shape {_SIZE[::-1]}",
        )
    return plane


def _decoded(content: bytes) -> NDArray[Any]:
    """The array of a .npy file. NumPy itself would first allocate what a damaged header asks for."""
    file = BytesIO(content)
    header = _HEADERS[np.lib.format.read_magic(file)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote
        shape, by_columns, dtype = header(file)
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")
