"""Proposed boxes of photos: where objects may be, made beforehand by another program.

FILE.mat     of selective search (Uijlings et al., IJCV 2013), as Fast R-CNN has them: `boxes`, a cell per photo of the
             split's list with rows of y1, x1, y2, x2, counted from 1; `images`, where it is there, their IDs
FILE.json    of anything else: {"000005": [[x1, y1, x2, y2], ...], ...}, counted from 0
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources.regular import read_file

_WHAT = "the file of proposed boxes"
_NO_BOXES = "the proposed boxes of a photo are no boxes"


def read_proposals(path: Path, sizes: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.float32]]:
    """The proposed boxes of photos.

    Args:
        path: `.mat` or `.json`, see above.
        sizes: width and height of the photos by their IDs, in the order of their split's list.

    Returns:
        By ID (P, 4): x1, y1, x2, y2 in pixels from 0; the pixels x2 and y2 belong to the box.

    Raises:
        DataError: it is missing, damaged, or of another split; a photo has no boxes, or some that are none, or that do
            not lie in the photo.
    """
    content = read_file(path, _WHAT)
    found = _of_json(path, content) if path.suffix == ".json" else _of_matlab(path, content, list(sizes))
    if lacking := [identity for identity in sizes if identity not in found]:
        raise DataError(
            "photos have no proposed boxes",
            where=path,
            seen=f"none for {lacking[0]}" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""),
            hint="give the file that was made for this split",
        )
    return {identity: _checked(path, identity, found[identity], size) for identity, size in sizes.items()}


def _of_matlab(path: Path, content: bytes, identities: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        found = loadmat(BytesIO(content))
        cells, names = found["boxes"].ravel(), [str(np.ravel(name)[0]) for name in np.ravel(found.get("images", []))]
    except Exception as error:  # SciPy raises whatever damaged bytes led it to
        if machine_fault(error) is not None:
            raise
        expected = "a .mat file (not of version 7.3) with the cells `boxes`, or a .json file"
        raise DataError(f"{_WHAT} cannot be read", where=path, seen=repr(error), expected=expected) from error
    if len(cells) != len(identities):
        raise DataError(
            "the proposed boxes are those of other photos",
            where=path,
            seen=f"{len(cells)} photos",
            expected=f"the {len(identities)} of the split's list",
            hint="give the file that was made for this split",
        )
    for name, identity in zip(names, identities, strict=False):
        if name.removesuffix(".jpg") != identity:
            raise DataError("the proposed boxes are those of other photos", where=path, seen=name, expected=identity)
    return {identity: _from_matlab(cell) for identity, cell in zip(identities, cells, strict=True)}


def _from_matlab(cell: Any) -> Any:
    """(y1, x1, y2, x2) from 1, often of 16 bits without sign, to (x1, y1, x2, y2) from 0."""
    return cell[:, [1, 0, 3, 2]].astype(np.float64) - 1 if getattr(cell, "shape", (0,))[1:] == (4,) else cell


def _of_json(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_WHAT} is damaged", where=path, seen=str(error)) from error
    if not isinstance(found, dict):
        raise DataError(f"{_WHAT} is damaged", where=path, seen=type(found).__name__, expected='{"000005": [...], ...}')
    return found


def _checked(path: Path, identity: str, boxes: Any, size: tuple[int, int]) -> NDArray[np.float32]:
    where = f"{path}, {identity}"
    try:
        found = np.asarray(boxes, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            "the proposed boxes of a photo are no boxes", where=where, seen=str(error), expected="rows of numbers"
        ) from error
    if not found.size:
        raise DataError("a photo has no proposed boxes", where=where, expected="at least one")
    if found.ndim != 2 or found.shape[1] != 4:
        raise DataError(
            "the proposed boxes of a photo are no boxes",
            where=where,
            seen=f"shape {found.shape}",
            expected="rows of four",
        )
    width, height = size
    inside = (found[:, :2] >= 0) & (found[:, :2] <= found[:, 2:]) & (found[:, 2:] <= (width - 1, height - 1))
    wrong = np.flatnonzero(~inside.all(axis=1))  # what is not a number is not inside either
    if len(wrong):
        raise DataError(
            "a proposed box does not lie in its photo",
            where=where,
            seen=f"{found[wrong[0]].tolist()} (x1, y1, x2, y2 from 0), and {len(wrong) - 1} more",
            expected=f"0 <= x1 <= x2 <= {width - 1} and 0 <= y1 <= y2 <= {height - 1}",
            hint="give the file that was made for this split",
        )
    return found
