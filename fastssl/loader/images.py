"""Images as the network takes them, made on the CPU by compiled code out of what is stored.

For windows that are only cut out. A sample is decoded, cut, mirrored and normalised by one thread while it is in that
core's cache, and threads do not wait for each other: together well below half of the time that the graph takes for it
(benchmarks/LOG.md). Colours, blur, windows of other sizes and GPUs are the graph's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

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

_ROWS = 8
"""Rows that are normalised at once."""
TOGETHER = 16
"""Images that a thread decodes at a time: so many windows stay in its cache, and it seldom needs the interpreter."""


class PendingImages:
    """Images that threads are making; `error` and `result` wait for them."""

    def __init__(self, images: _Floats, jobs: Sequence[Future[ShardError | None]]) -> None:
        self._images, self._jobs = images, jobs

    def error(self) -> ShardError | None:
        """The error of an image, if one is damaged."""
        return next((error for error in [job.result() for job in self._jobs] if error is not None), None)

    def result(self) -> Tensor:
        """(N, S, S, 3) float32; what a damaged image leaves is not to be used."""
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
        pinned: the images are to be uploaded to a GPU.
    """

    def __init__(
        self,
        codec: ImageCodec,
        stored: tuple[int, int],
        size: int,
        pool: ThreadPoolExecutor,
        threads: int,
        *,
        pinned: bool = False,
    ) -> None:
        self._codec, self._stored, self._size, self._pool, self._threads = codec, stored, size, pool, threads
        self._memory = Memory(pinned=pinned)

    def submit(self, members: Sequence[_Pixels], views: Views) -> PendingImages:
        """Start on a batch of stored images, each seen through its view."""
        shape = (len(members), self._size, self._size, 3)
        images = self._memory.lend(4 * int(np.prod(shape))).view(np.float32).reshape(shape)
        jobs = [
            self._pool.submit(self._fill, first, members, views, images)
            for first in range(min(self._threads, len(members)))
        ]
        return PendingImages(images, jobs)

    def _fill(self, first: int, members: Sequence[_Pixels], views: Views, images: _Floats) -> ShardError | None:
        found: ShardError | None = None
        windows = np.empty((TOGETHER, self._size, self._size, 3), np.uint8)
        corners, numbers = np.stack([views.top, views.left], axis=1), np.arange(first, len(members), self._threads)
        with traced("loader: images"):
            for some in np.split(numbers, range(TOGETHER, len(numbers), TOGETHER)):
                stored, decoded = [members[number] for number in some.tolist()], windows[: len(some)]
                try:
                    self._codec.decode_windows(stored, self._stored, corners[some], decoded)
                except ShardError as error:
                    found = error
                else:
                    _fill_images(decoded, some, views.flip, views.channel, IMAGE_MEAN, images)
        return found


@compiled
def _fill_images(
    windows: _Pixels,
    numbers: NDArray[np.int64],
    flip: NDArray[np.bool_],
    channel: NDArray[np.int64],
    mean: _Floats,
    images: _Floats,
) -> None:
    """Normalise windows (n, S, S, 3) to the images of these numbers; flips and channels are those of all images."""
    size = 3 * windows.shape[2]
    means, rows = np.empty(_ROWS * size, np.float32), np.empty(_ROWS * size, np.float32)
    mirrored, colours = np.empty(_ROWS * size, np.uint8), np.empty((3, windows.shape[2]), np.uint8)
    for k in range(len(windows)):
        i = numbers[k]
        for j in range(len(means)):
            means[j] = mean[channel[i]] if channel[i] >= 0 else mean[j % 3]
        _fill_image(
            windows[k].reshape(-1), size, flip[i], channel[i], means, rows, mirrored, colours, images[i].reshape(-1)
        )
    finish_stores()


@kernel
def _fill_image(
    window: _Pixels,
    size: int,
    flip: bool,
    channel: int,
    means: _Floats,
    rows: _Floats,
    mirrored: _Pixels,
    colours: _Pixels,
    image: _Floats,
) -> None:
    """Normalise a window, mirrored if `flip`, of one channel alone if `channel` is not below 0.

    Args:
        window: (S * S * 3,).
        size: numbers of a row.
        flip: whether it is mirrored.
        channel: the only one, or below 0.
        means: (rows * 3 S,) for each number of so many rows.
        rows, mirrored: as many, memory to work in.
        colours: (3, S) the same.
        image: (S * S * 3,) to be filled.
    """
    for start in range(0, len(image), len(rows)):
        stop = min(start + len(rows), len(image))
        stored = window[start:stop]
        if flip:
            for row in range(0, stop - start, size):
                _mirror(stored[row : row + size], colours[0], colours[1], colours[2], mirrored[row : row + size])
            stored = mirrored[: stop - start]
        _normalise(stored, means, rows)
        if channel >= 0:
            _repeat_channel(rows[: stop - start], channel)
        copy_past(rows, image, start, stop)


@inlined
def _normalise(stored: _Pixels, means: _Floats, out: _Floats) -> None:
    for k in range(len(stored)):
        out[k] = np.float32(stored[k]) * np.float32(1 / 255) - means[k]


@inlined
def _repeat_channel(rows: _Floats, channel: int) -> None:
    for x in range(len(rows) // 3):
        value = rows[3 * x + channel]
        rows[3 * x], rows[3 * x + 1], rows[3 * x + 2] = value, value, value


@inlined
def _mirror(row: _Pixels, red: _Pixels, green: _Pixels, blue: _Pixels, out: _Pixels) -> None:
    """By way of a row for each colour, for pixels of three bytes are turned by no vector."""
    last = np.uintp(len(red) - 1)
    for x in range(np.uintp(len(red))):
        place = np.uintp(3) * x
        red[x], green[x], blue[x] = row[place], row[place + np.uintp(1)], row[place + np.uintp(2)]
    for x in range(np.uintp(len(red))):
        place = np.uintp(3) * x
        out[place], out[place + np.uintp(1)], out[place + np.uintp(2)] = red[last - x], green[last - x], blue[last - x]
