"""Detected objects: the devkit's files of them, and which ones are right.

comp4_det_SPLIT_CLASS.txt     a line per detection: ID, score, x1, y1, x2, y2; pixels count from 1
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastssl.errors import DataError
from fastssl.evaluate.boxes import overlaps
from fastssl.files import complete_or_absent
from fastssl.sources.lists import numbered_lines

LEAST_OVERLAP = 0.5
"""Of a detection with its object."""
_COLUMNS = "an ID of the split, a score, and x1 <= x2, y1 <= y2 as x1 y1 x2 y2"


class Detections(NamedTuple):
    """Detections of one class."""

    images: list[str]
    """N IDs of photos."""
    scores: NDArray[np.float64]
    """(N,)"""
    boxes: NDArray[np.float64]
    """(N, 4): x1, y1, x2, y2 in pixels from 0; the pixels x2 and y2 belong to the box."""


class Objects(NamedTuple):
    """Objects of one class in a photo."""

    boxes: NDArray[np.float64]
    """(M, 4), as those of `Detections`."""
    difficult: NDArray[np.bool_]
    """(M,): whether it counts neither as found nor as missed."""


def as_written(images: Sequence[str], scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> Detections:
    """Detections as a file holds them: hundredths of pixels, and all digits of a score."""
    return Detections(list(images), scores.astype(np.float64), (boxes.astype(np.float64) + 1).round(2) - 1)


def write_detections(folder: Path, split: str, found: Mapping[str, Detections]) -> None:
    """A file for each class.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, scores, boxes) in found.items():
        with complete_or_absent(folder / _file(split, name)) as file:
            for image, score, (x1, y1, x2, y2) in zip(images, scores, boxes + 1, strict=True):
                file.write(f"{image} {score:.9g} {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f}\n".encode())


def read_detections(folder: Path, split: str, classes: Sequence[str], images: Collection[str]) -> dict[str, Detections]:
    """The detections of each class, as any program writes them.

    Raises:
        DataError: a file is missing, or has a line that is no detection in a photo of the split.
    """
    known = set(images)
    return {name: _read(folder / _file(split, name), known) for name in classes}


def _file(split: str, name: str) -> str:
    return f"comp4_det_{split}_{name}.txt"


def _read(path: Path, known: set[str]) -> Detections:
    images, numbers = list[str](), list[list[float]]()
    try:
        for number, line in numbered_lines(path):
            image, *texts = line.split()
            values = _numbers(texts)
            if image not in known or values is None:
                raise DataError("a line is no detection", where=f"{path}:{number}", seen=line[:80], expected=_COLUMNS)
            images.append(image)
            numbers.append(values)
    except (OSError, UnicodeDecodeError) as error:
        hint = "each class has a file, which is empty where nothing was detected"
        raise DataError("a file of detections cannot be read", where=path, seen=str(error), hint=hint) from error
    table = np.array(numbers, np.float64).reshape(-1, 5)
    return Detections(images, table[:, 0], table[:, 1:] - 1)


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """Score and box; None where they are none."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    if len(values) != 5 or not np.isfinite(values).all() or values[1] > values[3] or values[2] > values[4]:
        return None
    return values


def right_ones(found: Detections, objects: Mapping[str, Objects]) -> NDArray[np.bool_]:
    """Which detections are right, from the highest score down; as the devkit's `VOCevaldet` has it.

    A detection belongs to the object of its photo that it overlaps most, if by half at least. The first one of an
    object is right, and all later ones are wrong, as are those that belong to none. Those of difficult objects are left
    out.

    Args:
        found: of a class; of those with equal scores the first counts first.
        objects: of the same class, by photos' IDs; a photo without any may be missing.

    Returns:
        (N - left out,)
    """
    order = np.argsort(-found.scores, kind="stable")
    by_image = dict[str, list[int]]()
    for place, number in enumerate(order):
        by_image.setdefault(found.images[number], []).append(place)
    right, counts = np.zeros(len(order), bool), np.ones(len(order), bool)
    for image, places in by_image.items():
        own = objects.get(image)
        if own is None or not len(own.boxes):
            continue
        shared = overlaps(torch.from_numpy(found.boxes[order[places]]), torch.from_numpy(own.boxes)).numpy()
        nearest, enough = shared.argmax(axis=1), shared.max(axis=1) >= LEAST_OVERLAP
        taken = set[int]()
        for place, one, near in zip(places, nearest.tolist(), enough.tolist(), strict=True):
            if near and own.difficult[one]:
                counts[place] = False
            elif near and one not in taken:
                taken.add(one)
                right[place] = True
    return right[counts]
