"""The samples of `loaders.py` in every form that a loader reads, and the tensors that all loaders shall give.

source       JPEG and PNG files as `four_planes` wrote them, 320 x 240: the data set as a renderer leaves it
source_tars  the same files in tars of 100 samples
resized      JPEG and PNG files of 256 x 256: the very JPEGs of our shards, and the planes that are packed there
resized_tars the same in tars
shards       our packed shards
"""

from __future__ import annotations

import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from four_planes import FourPlanesSource, key_of, write_four_planes
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import IMAGE_MEAN
from fastssl.bench.rates import num_cores
from fastssl.geometry import edge_of
from fastssl.shards import JPEG, ShardSet, pack

SOURCE = (240, 320)
STRETCHED, CROP = 256, 227
SHIFTS = STRETCHED - CROP + 1
"""Positions of the window along one axis."""
PER_TAR = 100

Array = NDArray[Any]


class View(NamedTuple):
    """How a sample is seen: the corner of its window in the image stretched to 256 x 256."""

    sample: int
    top: int
    left: int
    flip: bool


@dataclass(frozen=True, slots=True)
class Views:
    """Endless views: all samples in a new random order in each epoch, or in order through one fixed window."""

    samples: int
    fixed: tuple[int, int, bool] | None = None

    def __iter__(self) -> Iterator[View]:
        while True:
            order = range(self.samples)
            for sample in order if self.fixed else random.sample(order, self.samples):
                yield self.draw(sample)

    def draw(self, sample: int) -> View:
        if self.fixed:
            return View(sample, *self.fixed)
        return View(sample, random.randrange(SHIFTS), random.randrange(SHIFTS), random.random() < 0.5)


@dataclass(frozen=True, slots=True)
class Files:
    """Loose files: one JPEG and three PNGs per sample."""

    folder: Path
    samples: int
    resized: bool
    """256 x 256 with a plane of contours, instead of 320 x 240 with one of instances."""

    @property
    def planes(self) -> tuple[str, str, str, str]:
        return ("rgb.jpg", "depth.png", "normal.png", "edge.png" if self.resized else "instance.png")

    def paths(self, sample: int) -> list[Path]:
        return [self.folder / f"{key_of(sample)}_{plane}" for plane in self.planes]

    @property
    def tars(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}_tars")


def source_files(data: Path, samples: int) -> Files:
    return Files(data / "source", samples, resized=False)


def resized_files(data: Path, samples: int) -> Files:
    return Files(data / "resized", samples, resized=True)


def prepare(data: Path, samples: int, say: Callable[[str], None]) -> None:
    """Make all forms below `data`; those that are there already are kept."""
    say(f"{samples} samples in {data}")
    # Processes take longer to begin than a few samples to be made.
    workers = num_cores() if samples > PER_TAR else 1
    write_four_planes(data / "source", samples, processes=workers)
    source, resized = source_files(data, samples), resized_files(data, samples)
    _complete(data / "shards", lambda out: pack(FourPlanesSource(source.folder), out, size=STRETCHED, workers=workers))
    _complete(resized.folder, lambda out: _write_resized(source, data / "shards", out))
    for files in (source, resized):
        _complete(files.tars, partial(_write_tars, files))


def bytes_per_sample(path: Path, samples: int) -> float:
    """All bytes of a file, or of a folder's files."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix != ".json"]
    return sum(file.stat().st_size for file in files) / samples


def _complete(folder: Path, write: Callable[[Path], object]) -> None:
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    partial.rename(folder)


def _write_resized(source: Files, shards: Path, out: Path) -> None:
    packed = ShardSet(shards)
    out.mkdir()
    for sample in range(source.samples):
        if packed.key(sample) != key_of(sample):
            raise ValueError(f"sample {sample} of the shards is {packed.key(sample)}")
        paths = Files(out, source.samples, resized=True).paths(sample)
        paths[0].write_bytes(packed.member(sample, JPEG).tobytes())
        depth, normal, instance = (_nearest(np.array(Image.open(path))) for path in source.paths(sample)[1:])
        for path, plane in zip(paths[1:], (depth, normal, edge_of(instance).astype(np.uint8)), strict=True):
            Image.fromarray(plane).save(path)


def _nearest(plane: Array) -> Array:
    """The plane stretched to 256 x 256: of each pixel the source pixel that holds its centre."""
    rows, columns = ((2 * np.arange(STRETCHED) + 1) * side // (2 * STRETCHED) for side in plane.shape[:2])
    nearest: Array = plane[rows[:, None], columns]
    return nearest


def _write_tars(files: Files, out: Path) -> None:
    out.mkdir()
    for first in range(0, files.samples, PER_TAR):
        with tarfile.open(out / f"{first // PER_TAR:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in range(first, min(first + PER_TAR, files.samples)):
                for path, plane in zip(files.paths(sample), files.planes, strict=True):
                    tar.add(path, f"{key_of(sample)}.{plane}")


def reference(files: Files, view: View, *, whole: bool = False) -> tuple[Array, Array, Array, Array, Array]:
    """The five tensors of one sample by Pillow and NumPy alone: image, depth, normal, edge and valid, (C, S, S) each.

    Args:
        whole: the whole stretched image instead of the view's window.
    """
    image, depth, codes, last = (np.array(Image.open(path)) for path in files.paths(view.sample))
    if not files.resized:
        image, depth, codes = _bilinear(image), _nearest(depth), _nearest(codes)
    edge = last if files.resized else edge_of(_nearest(last))
    normal = codes / np.float32(127.5) - np.float32(1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    known = codes.any(-1)
    normal[~known] = 0
    planes: list[Array] = [image / np.float32(255) - IMAGE_MEAN, depth * 1e-3, normal, edge, known & (depth > 0)]
    if not whole:
        planes = [plane[view.top : view.top + CROP, view.left : view.left + CROP] for plane in planes]
    if view.flip:
        planes = [plane[:, ::-1] for plane in planes]
        planes[2] = planes[2] * [-1, 1, 1]
    image, depth, normal, edge, valid = planes
    return image.transpose(2, 0, 1), depth[None], normal.transpose(2, 0, 1), edge[None], valid[None]


def _bilinear(image: Array) -> Array:
    """The image stretched to 256 x 256, each pixel interpolated at its centre."""
    for axis in (0, 1):
        side = image.shape[axis]
        at = ((np.arange(STRETCHED) + 0.5) * side / STRETCHED - 0.5).clip(0, side - 1)
        low = at.astype(int)
        fraction = (at - low).reshape(-1, 1, 1) if axis == 0 else (at - low).reshape(1, -1, 1)
        high = np.minimum(low + 1, side - 1)
        image = image.take(low, axis) * (1 - fraction) + image.take(high, axis) * fraction
    return image
