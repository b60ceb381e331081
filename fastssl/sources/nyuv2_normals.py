"""True normals of the labelled frames of NYU Depth v2, which are no part of the dataset: several groups computed some.

They lie in a folder, a file per frame, whose number is the frame's in the dataset, from 1 on. Two forms are read:

    nm_000001.mat       MATLAB 5 to 7.2: nx, ny, nz and depthValid, (480, 640) each; a normal counts where depthValid is
                        not 0. Such are those of Ladicky et al. (ECCV 2014), to which Wang et al. (CVPR 2015) compare.
    NAME0001NAME.png    8-bit RGB, 480 rows of 640 pixels, v / 255 * 2 - 1 in each channel; (0, 0, 0) = not known. The
                        number is the name's only run of digits. So later projects hand on both sets, that of Ladicky
                        and the one that Eigen & Fergus (ICCV 2015) made by the dataset's toolbox.

Vectors are brought to unit length; a null vector counts as not known, whatever the mask says. Their axes are not the
file's to say, so whoever reads them has to know (`fastssl.evaluate.nyud` compares with the depth).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.errors import DataError
from fastssl.files import read_regular
from fastssl.sources.png import plain_png

SHAPE = (480, 640)
_FIELDS = ("nx", "ny", "nz", "depthValid")
_LENGTH_TOLERANCE = 0.1
_FORMS = "nm_000001.mat to nm_001449.mat, or 8-bit PNGs with such numbers in their names"


class NyuNormals:
    """The files of a folder; they are read one at a time.

    Args:
        path: the folder.
        count: of the dataset's frames.

    Raises:
        DataError: the folder is missing or holds none, two are of one frame, or some are of no frame.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        try:
            names = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise DataError("the folder of true normals cannot be read", where=path, seen=error.strerror) from error
        self.files = self._numbered(names, r"nm_(\d+)\.mat") or self._numbered(names, r"\D*(\d+)\D*\.png")
        if not self.files:
            raise DataError("the folder holds no true normals", where=path, expected=_FORMS)
        if min(self.files) < 1 or max(self.files) > count:
            raise DataError(
                "the true normals are of another number of images",
                where=path,
                seen=f"numbers from {min(self.files)} to {max(self.files)}",
                expected=f"from 1 to {count}, as in the file of the frames",
                hint="name each file by MATLAB's number of its frame, which counts from 1",
            )

    def _numbered(self, names: Iterable[str], pattern: str) -> dict[int, Path]:
        files = dict[int, Path]()
        for name in names:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            number = int(match[1])
            if number in files:
                seen = f"{files[number].name} and {name}"
                raise DataError("two files of true normals are of one frame", where=self.path, seen=seen)
            files[number] = self.path / name
        return files

    def check(self, numbers: Iterable[int]) -> None:
        """Refuse frames that have no file.

        Raises:
            DataError: see above.
        """
        lacking = sorted(set(numbers) - set(self.files))
        if lacking:
            raise DataError(
                "frames have no true normals",
                where=self.path,
                seen=f"{len(self.files)} files; none for frame {lacking[0]}"
                + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""),
                expected=f"a file for every frame of splits.mat: {_FORMS}",
            )

    def read(self, number: int) -> NDArray[np.float64]:
        """The normals of a frame: (480, 640, 3) unit vectors in the file's own axes, zero vector = not known.

        Raises:
            DataError: the file is missing, damaged, of another kind or size, or of vectors that are no normals.
        """
        self.check([number])
        file = self.files[number]
        try:
            content = read_regular(file)
            normal = _of_mat(content, file) if file.suffix == ".mat" else _of_png(content, file)
        except OSError as error:
            raise DataError("true normals cannot be read", where=file, seen=error.strerror) from error
        except ValueError as error:
            raise DataError("true normals are damaged", where=file, seen=str(error)) from error
        return _unit(normal, file)


def _of_mat(content: bytes, file: Path) -> NDArray[np.float64]:
    from scipy.io import loadmat

    try:
        arrays: dict[str, NDArray[Any]] = loadmat(BytesIO(content), variable_names=_FIELDS)
    except Exception as error:  # SciPy raises nearly any kind of exception for damaged bytes
        hint = "one of MATLAB 7.3 has to be saved again, by save(..., '-v7')"
        raise DataError("true normals cannot be read", where=file, seen=str(error), hint=hint) from error
    for name in _FIELDS:
        if name not in arrays:
            raise DataError(f"true normals lack {name}", where=file, expected=", ".join(_FIELDS))
        _check_shape(arrays[name].shape, SHAPE, f"{file}: {name}")
    normal = np.stack([arrays[name].astype(np.float64) for name in _FIELDS[:3]], axis=-1)
    return np.where(arrays["depthValid"][..., None] != 0, normal, 0.0)


def _of_png(content: bytes, file: Path) -> NDArray[np.float64]:
    png = plain_png(content)
    if png is None or png.mode != "RGB":
        raise DataError(
            "this is no PNG of normals",
            where=file,
            seen="no PNG, or one of a rare kind" if png is None else f"a PNG of mode {png.mode}",
            expected="plain RGB of 8 bits",
        )
    pixels = png.pixels()
    _check_shape(pixels.shape[:2], SHAPE, str(file))
    return np.where(pixels.any(axis=2, keepdims=True), pixels / 255 * 2 - 1, 0.0)


def _check_shape(seen: tuple[int, ...], expected: tuple[int, int], where: str) -> None:
    if seen != expected:
        hint = "rows and columns are swapped" if seen == expected[::-1] else None
        raise DataError("true normals have another shape", where=where, seen=seen, expected=expected, hint=hint)


def _unit(vectors: NDArray[np.float64], file: Path) -> NDArray[np.float64]:
    if not np.isfinite(vectors).all():
        raise DataError("true normals are not finite where they count", where=file)
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))[..., None]
    known = length > 0
    if known.any() and not abs(float(np.median(length[known])) - 1) <= _LENGTH_TOLERANCE:
        seen = f"vectors of a median length of {float(np.median(length[known])):.3g}"
        raise DataError("these are no unit normals", where=file, seen=seen, expected="a length of 1")
    np.divide(vectors, length, out=vectors, where=known)
    return vectors
