"""Images as the network takes them, made on the CPU by compiled code out of what is stored.

For windows that are only cut out. A sample is decoded, cut, mirrored and normalised by one thread while it is in that
core's cache, and threads do not wait for each other: together well below half of the time that the graph takes for it
(benchmarks/LOG.md). Images that are uploaded stay bytes, a quarter of the memory, and the GPU normalises them. Colours,
blur, windows of other sizes and GPUs are the graph's work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssl.batch import IMAGE_MEAN
from fastssl.compiled import compiled, inlined, kernel
from fastssl.errors import ShardError
from fastssl.loader.memory import Memory
from fastssl.loader.past_cache import copy_past, finish_stores
from fastssl.loader.plan import Views
from fastssl.ranges import traced
from fastssl.shards import ImageCodec

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Images = NDArray[Any]
"""(N, S, S, 3): float32 as the network takes it, or uint8 to be uploaded."""

_ROWS = 8
"""Rows that are normalised at once."""
TOGETHER = 16
"""Images that a thread decodes at a time: so many windows stay in its cache, and it seldom needs the interpreter."""


class PendingImages:
    """Images that threads are making; `error` and `result` wait for them."""

    def __init__(self, images: _Images, jobs: Sequence[Future[ShardError | None]]) -> None:
        self._images, self._jobs = images, jobs

    def error(self) -> ShardError | None:
        """The error of an image, if one is damaged."""
        return next((error for error in [job.result() for job in self._jobs] if error is not None), None)

    def result(self) -> Tensor:
        """(N, S, S, 3) float32, or uint8 to be uploaded; what a damaged image leaves is not to be used."""
        self.error()
        return torch.from_numpy(self._images)


class ThreadedImages:
    """Makes the network's input, many images at a time.

    Args:
        codec: of the images.
        stored: their height and width.
        size: side of the windows.
        pool: its threads do the work.
        threads: so many of them.
        uploaded: the images are for a GPU, where `normalised` is called: they stay bytes, in pinned memory.
    """

    def __init__(
        self,
        codec: ImageCodec,
        stored: tuple[int, int],
        size: int,
        pool: ThreadPoolExecutor,
        threads: int,
        *,
        uploaded: bool = False,
    ) -> None:
        self._codec, self._stored, self._size, self._pool, self._threads = codec, stored, size, pool, threads
        self._uploaded, self._memory = uploaded, Memory(pinned=uploaded)

    def submit(self, members: Sequence[_Pixels], views: Views) -> PendingImages:
        """Start on a batch of stored images, each seen through its view."""
        shape = (len(members), self._size, self._size, 3)
        dtype = np.dtype(np.uint8 if self._uploaded else np.float32)
        images = self._memory.lend(dtype.itemsize * math.prod(shape)).view(dtype).reshape(shape)
        num = min(self._threads, len(members))
        ends = [len(members) * job // num for job in range(num + 1)]
        jobs = [self._pool.submit(self._fill, *part, members, views, images) for part in pairwise(ends)]
        return PendingImages(images, jobs)

    def _fill(
        self, first: int, end: int, members: Sequence[_Pixels], views: Views, images: _Images
    ) -> ShardError | None:
        """Make the images from the first to the one before the end."""
        found: ShardError | None = None
        corners = np.stack([views.top, views.left], axis=1)
        with traced("loader: images"):
            for start in range(first, end, TOGETHER):
                some = slice(start, min(start + TOGETHER, end))
                windows = images[some] if self._uploaded else np.empty((some.stop - start, *images.shape[1:]), np.uint8)
                try:
                    self._codec.decode_windows(members[some], self._stored, corners[some], windows)
                except ShardError as error:
                    found = error
                else:
                    _see_windows(windows, views.flip[some], views.channel[some])
                    if not self._uploaded:
                        _normalise_windows(windows, image_means(views.channel[some]), images[some])
        return found


def image_means(channel: NDArray[np.int64]) -> _Floats:
    """(N, 3) float32: the means of each image's three channels, which are one where `channel`, (N,), names it."""
    return np.where(channel[:, None] >= 0, IMAGE_MEAN[channel][:, None], IMAGE_MEAN)


def normalised(windows: Tensor, means: Tensor) -> Tensor:
    """(N, S, S, 3) float32: the images of uploaded windows, bit for bit as threads make them.

    Args:
        windows: (N, S, S, 3) uint8.
        means: (N, 3) float32, `image_means`.

    Sync: none.
    """
    # One by one, so that the product is rounded before the difference is, wherever they are computed.
    return windows.to(torch.float32).mul_(1 / 255).sub_(means[:, None, None])


@compiled
def _see_windows(windows: _Pixels, flip: NDArray[np.bool_], channel: NDArray[np.int64]) -> None:
    """Mirror windows, (n, S, S, 3), where `flip` says so, and repeat the channel that is not below 0, in place."""
    colours = np.empty((3, windows.shape[2]), np.uint8)
    for k in range(len(windows)):
        if flip[k] or channel[k] >= 0:
            _see(windows[k].reshape(-1), flip[k], channel[k], colours)


@kernel
def _see(window: _Pixels, flip: bool, channel: int, colours: _Pixels) -> None:
    """By way of a row for each colour, for pixels of three bytes are turned by no vector.

    Args:
        window: (S * 3 S,).
        flip: whether it is mirrored.
        channel: the only one, or below 0.
        colours: (3, S) memory to work in.
    """
    size = colours.size
    for start in range(0, len(window), size):
        row = window[start : start + size]
        _take_apart(row, colours[0], colours[1], colours[2])
        red, green, blue = (channel, channel, channel) if channel >= 0 else (0, 1, 2)
        if flip:
            _put_mirrored(colours[red], colours[green], colours[blue], row)
        else:
            _put_together(colours[red], colours[green], colours[blue], row)


@inlined
def _take_apart(row: _Pixels, red: _Pixels, green: _Pixels, blue: _Pixels) -> None:
    for x in range(np.uintp(len(red))):
        place = np.uintp(3) * x
        red[x], green[x], blue[x] = row[place], row[place + np.uintp(1)], row[place + np.uintp(2)]


@inlined
def _put_together(red: _Pixels, green: _Pixels, blue: _Pixels, row: _Pixels) -> None:
    for x in range(np.uintp(len(red))):
        place = np.uintp(3) * x
        row[place], row[place + np.uintp(1)], row[place + np.uintp(2)] = red[x], green[x], blue[x]


@inlined
def _put_mirrored(red: _Pixels, green: _Pixels, blue: _Pixels, row: _Pixels) -> None:
    last = np.uintp(len(red) - 1)
    for x in range(np.uintp(len(red))):
        place, other = np.uintp(3) * x, last - x
        row[place], row[place + np.uintp(1)], row[place + np.uintp(2)] = red[other], green[other], blue[other]


@compiled
def _normalise_windows(windows: _Pixels, means: _Floats, images: _Floats) -> None:
    """Fill images, (n, S, S, 3), from windows of the same shape and `image_means`, (n, 3)."""
    size = _ROWS * 3 * windows.shape[2]
    mean, rows = np.empty(size, np.float32), np.empty(size, np.float32)
    for k in range(len(windows)):
        for j in range(size):
            mean[j] = means[k, j % 3]
        _normalise_window(windows[k].reshape(-1), mean, rows, images[k].reshape(-1))
    finish_stores()


@kernel
def _normalise_window(window: _Pixels, mean: _Floats, rows: _Floats, image: _Floats) -> None:
    """Normalise a window, (S * S * 3,), some rows at once; `mean` and `rows`, memory to work in, have their numbers."""
    for start in range(0, len(image), len(rows)):
        stop = min(start + len(rows), len(image))
        _normalise(window[start:stop], mean, rows)
        copy_past(rows, image, start, stop)


@inlined
def _normalise(stored: _Pixels, mean: _Floats, out: _Floats) -> None:
    for k in range(len(stored)):
        out[k] = np.float32(stored[k]) * np.float32(1 / 255) - mean[k]
