"""Images as the network takes them, made on the CPU by compiled code out of what is stored.

For windows that are only cut out. A sample is decoded, cut, mirrored and normalised by one thread while it is in that
core's cache, and threads do not wait for each other: together 0.6 of the time that the graph takes for it
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
from fastssl.compiled import compiled
from fastssl.errors import ShardError
from fastssl.loader.memory import Memory
from fastssl.loader.plan import Views
from fastssl.ranges import traced
from fastssl.shards import ImageCodec

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]


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
    """

    def __init__(
        self, codec: ImageCodec, stored: tuple[int, int], size: int, pool: ThreadPoolExecutor, threads: int
    ) -> None:
        self._codec, self._stored, self._size, self._pool, self._threads = codec, stored, size, pool, threads
        self._memory = Memory()

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
        window = np.empty((self._size, self._size, 3), np.uint8)
        corners = list(zip(views.top.tolist(), views.left.tolist(), strict=True))
        with traced("loader: images"):
            for i in range(first, len(members), self._threads):
                try:
                    self._codec.decode_window(members[i], self._stored, corners[i], window)
                except ShardError as error:
                    found = error
                else:
                    _fill_image(window, views.flip[i], views.channel[i], IMAGE_MEAN, images[i])
        return found


@compiled
def _fill_image(window: _Pixels, flip: bool, channel: int, mean: _Floats, image: _Floats) -> None:
    """Normalise a window (S, S, 3), mirrored if `flip`, of one channel alone if `channel` is not below 0."""
    size = len(image)
    means, gray = np.empty(3 * size, np.float32), np.empty(3 * size, np.uint8)
    forward = np.empty(3 * size, np.float32)
    for j in range(3 * size):
        means[j] = mean[channel] if channel >= 0 else mean[j % 3]
    for y in range(size):
        stored, row = window[y].reshape(-1), image[y].reshape(-1)
        if channel >= 0:
            _repeat_channel(stored, channel, gray)
            stored = gray
        if flip:
            # Mirroring floats behind it takes a third of the time of one loop for both, which is no vector's.
            _normalise(stored, means, forward)
            _mirror(forward, row)
        else:
            _normalise(stored, means, row)


@compiled
def _repeat_channel(stored: _Pixels, channel: int, row: _Pixels) -> None:
    for x in range(len(row) // 3):
        value = stored[3 * x + channel]
        row[3 * x], row[3 * x + 1], row[3 * x + 2] = value, value, value


@compiled
def _normalise(stored: _Pixels, means: _Floats, out: _Floats) -> None:
    for k in range(len(out)):
        out[k] = np.float32(stored[k]) * np.float32(1 / 255) - means[k]


@compiled
def _mirror(row: _Floats, out: _Floats) -> None:
    size = len(out) // 3
    for x in range(size):
        first, place = np.uintp(3 * (size - 1 - x)), np.uintp(3 * x)  # unsigned: no test for indices from the end
        out[place], out[place + 1], out[place + 2] = row[first], row[first + 1], row[first + 2]
