"""Layout `nyuv2`: the 1449 labelled frames of NYU Depth v2 (Silberman et al., ECCV 2012), Kinect photos of rooms.

    nyu_depth_v2_labeled.mat    MATLAB 7.3, which is HDF5; 2.8 GB, of which only one frame at a time is read:
        images                      (N, 3, 640, 480) uint8
        depths                      (N, 640, 480) float32, metres
        labels                      (N, 640, 480) uint16
        instances                   (N, 640, 480) uint8
    splits.mat                  MATLAB 5, trainNdxs and testNdxs: 795 and 654 numbers from 1; needed for a subset

HDF5 shows MATLAB's arrays with their axes reversed. The frames are real photos, and labelled all the same.

Origin of these facts: the dataset's page and its toolbox.

Depth is planar, projected onto the photo and in-filled, so that there is a value everywhere. Nothing was measured
around the border, so the region that the toolbox calls valid is cut out: `mask(45:471, 41:601)`, which MATLAB counts
from 1 and up to the last one, 561 x 427 pixels.

The lens is that of the toolbox for RGB, fx 518.858, fy 519.470, cx 325.582, cy 253.736. It projects with pixels that
count from 1 (`meshgrid(1:640, 1:480)`), so the centre of its first pixel is at 1, and here at 0.5: half a pixel is
subtracted from cx and cy, and then the 40 columns and 44 rows that are cut off.

Normals are no part of the dataset and are computed from the depth, within objects. Kinect measures disparity in whole
numbers, so its depth has steps of z^2 / 351.3 (3 mm at 1 m, 26 mm at 3 m), and noise of the same order; twice the steps
are tolerated. Simulated walls turned by 20 degrees, with this rounding and noise of half a step before it, are right to
0.05 degrees in the mean at 2 m, 0.12 at 5 m, 0.24 at 10 m, where Kinect's range ends, and 0.5 at 20 m. Surfaces that
show too few pixels for these steps (24 in square at 3 m, 33 at 5 m) have no normals. In-filled surfaces are as good as
the in-filling.

Instances are the pairs of label and instance; (0, 0) is what nobody labelled. People left ribbons of it between the
objects, a few pixels wide, beside which each border would be drawn twice. So what is unlabelled and up to 10 pixels
wide (14, where no two ribbons cross) goes to the nearest object, for the contours and for the normals. Wider regions
stay, as one identity, but for their corners, which the same rule rounds off by up to 3 pixels. Normals gain by it: in
ribbons of their own they were off by 20 to 30 degrees in the mean on simulated frames, and are by less than 3.

A frame without any depth, or without any label, is an error: the dataset has none, and arrays that were never written
read so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.files import read_regular
from fastssl.geometry import normals_from_depth
from fastssl.shards import DomainName, PassedOver
from fastssl.sources import census
from fastssl.sources.hdf5 import open_hdf5
from fastssl.sources.opening import checked_subset

FRAMES, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
ROWS, COLUMNS = slice(44, 471), slice(40, 601)
CAMERA = Intrinsics(fx=518.858, fy=519.470, cx=325.582 - 0.5 - COLUMNS.start, cy=253.736 - 0.5 - ROWS.start)

_SUBSETS = {"train": "trainNdxs", "test": "testNdxs"}
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "images": ("uint8", (3, 640, 480)),
    "depths": ("float32", (640, 480)),
    "labels": ("uint16", (640, 480)),
    "instances": ("uint8", (640, 480)),
}
"""Type and shape of one frame."""
_DISPARITIES = 351.3
"""Metres; depth is this over disparity, from the toolbox's `depth = 351.3 / (1092.5 - raw)`."""
_NOISE = 2
"""Steps of the depth that are tolerated."""
_RIBBON = 10
"""Pixels; the largest width of what is filled."""


class NyuV2Source:
    """The labelled frames; a reference is a frame's number, from 0001 as in the toolbox.

    Args:
        path: the folder of the two files, or `nyu_depth_v2_labeled.mat` itself with `splits.mat` beside it.
        subset: `train` or `test` of `splits.mat`; None takes all frames.

    Raises:
        UsageError: there is no such subset.
        DataError: a file is missing, damaged, or holds something else.
    """

    layout: ClassVar[str] = "nyuv2"
    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = True
    licence: str = "check the terms of NYU Depth v2"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """The file of the labelled frames, or the folder that holds it."""
        if (path / FRAMES).is_file():
            return f"the folder has {FRAMES}"
        return f"the file is {FRAMES}" if path.name == FRAMES and path.is_file() else None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, tuple(_SUBSETS))
        self._file = self.path if self.path.suffix == ".mat" else self.path / FRAMES
        count = self._count()
        numbers = range(1, count + 1) if subset is None else _split(self._file.with_name(SPLITS), _SUBSETS[subset])
        if not set(numbers) <= set(range(1, count + 1)):
            raise DataError(
                "a split does not fit the frames",
                where=self._file.with_name(SPLITS),
                seen=f"numbers from {min(numbers)} to {max(numbers)}",
                expected=f"from 1 to {count}",
            )
        self._references = tuple(f"{number:04d}" for number in numbers)

    def references(self) -> Iterator[str]:
        """Numbers of the frames, ascending."""
        return iter(self._references)

    def passed_over(self) -> dict[str, PassedOver]:
        """Entries of the folder besides the two files; none if the file of the frames itself was given."""
        if self._file == self.path:
            return {}
        return census.passed_over(self.path, lambda file: file in (FRAMES, SPLITS))

    def key(self, reference: str) -> str:
        """The reference itself."""
        return reference

    def read(self, reference: str) -> Record:
        """One frame, cut to its valid region.

        Raises:
            DataError: there is no such frame, it has no depth or no labels, or the file is damaged there; the error
                names the file.
        """
        if reference not in self._references:
            raise DataError("there is no such frame", where=self._file, seen=reference)
        planes = self.stored(reference, tuple(_ARRAYS))
        depths = planes["depths"][ROWS, COLUMNS]
        depth = np.where(np.isfinite(depths) & (depths > 0), depths, np.float32(0))
        pairs = planes["labels"].astype(np.int32) * 256 + planes["instances"]
        for name, plane in (("depth", depth), ("labels", pairs)):
            if not plane.any():
                raise DataError(
                    f"a frame has no {name}",
                    where=f"{self._file}: frame {reference}",
                    seen="zeros alone",
                    hint="compare the file's size and checksum with the download's, and copy it again",
                )
        instance = np.ascontiguousarray(_without_ribbons(pairs)[ROWS, COLUMNS])
        return Record(
            key=reference,
            image=np.ascontiguousarray(planes["images"][ROWS, COLUMNS]),
            depth=depth,
            normal=normals_from_depth(depth, CAMERA, instance, step=depth_steps(depth)),
            instance=instance,
            camera=CAMERA,
        )

    def stored(self, reference: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Arrays of one frame by their names, (480, 640[, 3]) each, as they are stored.

        Raises:
            DataError: the file is damaged there.
        """
        with open_hdf5(self._file) as file:
            return {name: np.asarray(file[name][int(reference) - 1]).T for name in names}

    def _count(self) -> int:
        """Number of frames, of which all arrays have as many."""
        with open_hdf5(self._file) as file:
            found = {name: (str(file[name].dtype), file[name].shape) for name in _ARRAYS}
        count = int((*found["images"][1], 0)[0])
        expected = {name: (dtype, (count, *shape)) for name, (dtype, shape) in _ARRAYS.items()}
        for name, seen in found.items():
            if seen != expected[name] or not count:
                raise DataError(
                    f"the array {name} is not what its dataset says",
                    where=self._file,
                    seen=seen,
                    expected=expected[name],
                )
        return count


def depth_steps(depth: NDArray[np.floating]) -> NDArray[np.floating]:
    """Metres of Kinect's steps and noise at each depth (H, W), as `normals_from_depth` takes them."""
    return _NOISE * depth**2 / _DISPARITIES


def _without_ribbons(pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    """Identities (H, W), in which narrow regions of 0 belong to their nearest neighbour; some pixel is not 0."""
    from scipy.ndimage import distance_transform_edt

    away, nearest = distance_transform_edt(pairs == 0, return_indices=True)
    filled: NDArray[np.int32] = pairs[tuple(nearest)]
    # Where two ribbons cross, the circle between their four corners is wider than they are by the root of 2.
    radius = (_RIBBON + 0.5) / np.sqrt(2)
    middle = away > radius
    if middle.any():
        filled[(pairs == 0) & (distance_transform_edt(~middle) <= radius)] = 0
    return filled


def _split(path: Path, name: str) -> tuple[int, ...]:
    from scipy.io import loadmat

    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise DataError("the file of the splits is missing", where=path, hint="copy splits.mat there") from error
    except OSError as error:
        raise DataError("the file of the splits cannot be read", where=path, seen=error.strerror) from error
    try:
        numbers = loadmat(BytesIO(content), variable_names=[name])[name]
        return tuple(sorted(int(number) for number in np.ravel(numbers)))
    except Exception as error:  # SciPy raises nearly any kind of exception for damaged bytes.
        raise DataError("the file of the splits cannot be read", where=path, seen=str(error), expected=name) from error
