"""Layout `nyuv2`: the 1449 labelled frames of NYU Depth v2 (Silberman et al., ECCV 2012), Kinect photos of rooms.

    nyu_depth_v2_labeled.mat    MATLAB 7.3, which is HDF5; 2.8 GB, of which only one frame at a time is read
    splits.mat                  MATLAB 5, trainNdxs and testNdxs: 795 and 654 numbers from 1; needed for a subset

HDF5 shows MATLAB's arrays with their axes reversed: images (N, 3, 640, 480) uint8, depths (N, 640, 480) float32 metres,
labels (N, 640, 480) uint16 and instances (N, 640, 480) uint8. The frames are real photos, and labelled all the same.

Depth is `depths`: planar, projected onto the photo and in-filled, so that there is a value everywhere. Nothing was
measured around the border, so the region that the toolbox calls valid is cut out: `mask(45:471, 41:601)`, which MATLAB
counts from 1 and up to the last one, 561 x 427 pixels.

Camera: the toolbox's RGB intrinsics, fx 518.858, fy 519.470, cx 325.582, cy 253.736. It projects with pixels that count
from 1 (`meshgrid(1:640, 1:480)`), so the centre of its first pixel is at 1, and here at 0.5: half a pixel is subtracted
from cx and cy, and then the 40 columns and 44 rows that are cut off.

Normals are computed from depth. Kinect measures disparity in whole numbers, so its depth has steps of z^2 / 351.3 (3 mm
at 1 m, 26 mm at 3 m), and noise of the same order. `normals_from_depth` is run for each octave of depth with one and a
half times the steps at its far end. On simulated planes with this rounding, and noise of half a step before it, normals
are then right to 0.1 degrees on average where they are known; beyond 5 m a third to all are not known. In-filled
surfaces are as good as the in-filling.

Objects are the pairs of label and instance; (0, 0), which nobody labelled, is one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import normals_from_depth
from fastssl.shards import Domain
from fastssl.sources.subsets import checked_subset

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
_NOISE = 1.5


class NyuV2Source:
    """The labelled frames; a reference is a frame's number, from 0001 as in the toolbox.

    Args:
        path: the folder of the two files, or `nyu_depth_v2_labeled.mat` itself with `splits.mat` beside it.
        subset: `train` or `test` of `splits.mat`; None takes all frames.

    Raises:
        UsageError: there is no such subset.
        DataError: a file is missing, damaged, or holds something else.
    """

    layout: str = "nyuv2"
    domain: Domain = "real"
    labelled: bool = True
    licence: str = "see the terms of NYU Depth v2"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """The file of the labelled frames, or the folder that holds it."""
        return path.name == FRAMES or (path / FRAMES).is_file()

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, tuple(_SUBSETS))
        self._file = self.path / FRAMES if self.path.is_dir() else self.path
        count = self._count()
        numbers = range(1, count + 1) if subset is None else _split(self._file.with_name(SPLITS), _SUBSETS[subset])
        if not set(numbers) <= set(range(1, count + 1)):
            raise DataError(
                "a split does not fit the frames",
                where=self._file.with_name(SPLITS),
                seen=f"numbers from {min(numbers)} to {max(numbers)}",
                expected=f"from 1 to {count}",
            )
        self._numbers = tuple(numbers)

    def references(self) -> Iterator[str]:
        """Numbers of the frames, ascending."""
        return (f"{number:04d}" for number in self._numbers)

    def key(self, reference: str) -> str:
        """The reference."""
        return reference

    def read(self, reference: str) -> Record:
        """One frame, cut to its valid region.

        Raises:
            DataError: the file is damaged there.
        """
        planes = self._planes(int(reference) - 1)
        depth = np.where(np.isfinite(planes["depths"]) & (planes["depths"] > 0), planes["depths"], np.float32(0))
        instance = planes["labels"].astype(np.int32) * 256 + planes["instances"]
        return Record(
            key=reference,
            image=planes["images"],
            depth=depth,
            normal=_normals(depth, instance),
            instance=instance,
            camera=CAMERA,
        )

    def _planes(self, index: int) -> dict[str, NDArray[Any]]:
        """The arrays of one frame, (H, W[, 3]), cut to the valid region."""
        with _opened(self._file) as file:
            planes = {name: np.asarray(file[name][index]).T for name in _ARRAYS}
        return {name: np.ascontiguousarray(plane[ROWS, COLUMNS]) for name, plane in planes.items()}

    def _count(self) -> int:
        """Number of frames, of which all arrays have as many."""
        with _opened(self._file) as file:
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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The HDF5 file; whatever fails while it is open is the file's fault."""
    import h5py

    try:
        # Files are only read, and network file systems often refuse locks.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(
            "the labelled frames are missing", where=path, do="copy nyu_depth_v2_labeled.mat there"
        ) from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError("the labelled frames cannot be read", where=path, seen=str(error)) from error


def _split(path: Path, name: str) -> tuple[int, ...]:
    from scipy.io import loadmat

    try:
        return tuple(sorted(int(number) for number in np.ravel(loadmat(path, variable_names=[name])[name])))
    except FileNotFoundError as error:
        raise DataError("the file of the splits is missing", where=path, do="copy splits.mat there") from error
    except Exception as error:  # SciPy raises nearly any kind of exception for damaged bytes.
        raise DataError("the file of the splits cannot be read", where=path, seen=str(error), expected=name) from error


def _normals(depth: NDArray[np.float32], instance: NDArray[np.int32]) -> NDArray[np.float32]:
    normal = np.zeros((*depth.shape, 3), np.float32)
    _, octave = np.frexp(depth)  # depth lies between 2^(octave - 1) and 2^octave
    for exponent in np.unique(octave[depth > 0]):
        step = _NOISE * 4.0 ** float(exponent) / _DISPARITIES
        here = (octave == exponent) & (depth > 0)
        normal[here] = normals_from_depth(depth, CAMERA, instance, step=step)[here]
    return normal
