"""Random square crops of photos, cut out of image files by threads that stay ahead of whoever learns from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastssl.batch import IMAGE_MEAN
from fastssl.sources.images import read_image

_LEAST, _MOST = 0.5, 2.0
_AHEAD = 3
"""Batches that are under way at a time."""
_Pixels = NDArray[np.uint8]


class Square(NamedTuple):
    """A part of an image, in pixels and their fractions."""

    left: float
    top: float
    side: float
    mirrored: bool


def drawn_square(width: int, height: int, size: int, generator: np.random.Generator) -> Square:
    """A square that lies in an image: its side is `size` s with s from U(min(0.5, m), m) and m = min(2, H / size,
    W / size), its place is uniform among those where it fits, and it is mirrored every other time.

    Source: `python_layers.py` of Kraehenbuehl's github.com/philkr/voc-classification.
    """
    most = min(_MOST, height / size, width / size)
    side = size * generator.uniform(min(_LEAST, most), most)
    left, top = generator.uniform(0, width - side), generator.uniform(0, height - side)
    return Square(left, top, side, bool(generator.random() < 0.5))


def cut(pixels: _Pixels, square: Square, size: int) -> _Pixels:
    """The square of an image, (H, W, 3), as (size, size, 3): bilinear between four pixels, however large it is."""
    left, top, side, mirrored = square
    box = (left, top, left + side, top + side)
    image = Image.fromarray(pixels).transform((size, size), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    found = np.asarray(image)
    return found[:, ::-1] if mirrored else found


class Wanted(NamedTuple):
    """A photo whose crops are wanted."""

    path: Path
    key: tuple[int, ...]
    """All that its draws follow from."""


class CropBatches:
    """Batches of crops by their numbers; the next ones are under way when one is taken.

    Args:
        wanted: the photos of a batch by its number; none behind the last batch.
        size: side of a crop.
        crops: of each photo.
        threads: 0 = one for each core.
    """

    def __init__(
        self, wanted: Callable[[int], Sequence[Wanted]], *, size: int, crops: int = 1, threads: int = 0
    ) -> None:
        self._wanted, self._size, self._crops = wanted, size, crops
        self._pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), thread_name_prefix="fastssl-crops")
        self._under_way = dict[int, list[Future[_Pixels]]]()

    def __enter__(self) -> CropBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, number: int) -> Tensor:
        """A batch: (N * crops, 3, size, size) float32, RGB / 255 minus `IMAGE_MEAN`; crops of a photo are neighbours.

        Raises:
            DataError: a photo that cannot be read.
        """
        for ahead in range(number, number + _AHEAD):
            if ahead not in self._under_way:
                self._under_way[ahead] = [self._pool.submit(self._crops_of, one) for one in self._wanted(ahead)]
        crops = np.concatenate([job.result() for job in self._under_way.pop(number)])
        return (torch.from_numpy(crops).float() / 255 - torch.from_numpy(IMAGE_MEAN)).permute(0, 3, 1, 2)

    def _crops_of(self, wanted: Wanted) -> _Pixels:
        pixels, generator = read_image(wanted.path), np.random.default_rng(wanted.key)
        height, width, _ = pixels.shape
        squares = [drawn_square(width, height, self._size, generator) for _ in range(self._crops)]
        return np.stack([cut(pixels, square, self._size) for square in squares])
