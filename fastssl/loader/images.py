"""Images mirrored and normalised on the CPU by compiled code.

For windows that are cut out as they are, this does in one pass over a batch what the graph's operators do in two, and
takes a fifth of their time; the graph decodes the windows alone. Colours, blur and windows of other sizes are the
graph's work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssl.batch import IMAGE_MEAN
from fastssl.compiled import compiled
from fastssl.loader.memory import Memory
from fastssl.loader.plan import Views
from fastssl.loader.underway import Decoded, Fed
from fastssl.ranges import traced

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Places = NDArray[np.int64]


class PendingImages:
    """Images that threads are filling; `result` waits for them."""

    def __init__(self, images: _Floats, jobs: list[Future[None]]) -> None:
        self._images, self._jobs = images, jobs

    def result(self) -> Tensor:
        """(N, S, S, 3) float32."""
        for job in self._jobs:
            job.result()
        return torch.from_numpy(self._images)


class ThreadedImages:
    """Threads that make the network's input out of decoded images."""

    def __init__(self, size: int, threads: int) -> None:
        self._size, self._threads = size, threads
        self._memory = Memory()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastssl-images")

    def submit(self, decoded: Tensor, views: Views) -> PendingImages:
        """Start on a batch.

        Args:
            decoded: (N, S, S, 3) uint8, the windows as they are stored, left alone until the result is there.
            views: of these windows.
        """
        shape = (len(decoded), self._size, self._size, 3)
        images = self._memory.lend(4 * int(np.prod(shape))).view(np.float32).reshape(shape)
        pixels = decoded.numpy()
        jobs = [
            self._pool.submit(_fill, first, self._threads, pixels, views.flip, views.channel, images)
            for first in range(min(self._threads, len(decoded)))
        ]
        return PendingImages(images, jobs)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Begun:
    """A batch whose images threads are filling."""

    fed: Fed
    images: PendingImages

    def finished(self) -> Decoded:
        return Decoded(fed=self.fed, image=self.images.result())


def images_ahead(batches: Iterator[Decoded], threads: ThreadedImages) -> Iterator[Decoded]:
    """Batches with their images as the network takes them, which threads make while the batch before is in use."""
    begun = deque[_Begun]()
    for batch in batches:
        begun.append(_Begun(fed=batch.fed, images=threads.submit(batch.image, batch.fed.views)))
        if len(begun) > 1:
            # Nothing of it stays behind: the consumer alone decides when it goes.
            yield begun.popleft().finished()
    while begun:
        yield begun.popleft().finished()


def _fill(
    first: int, step: int, decoded: _Pixels, flip: NDArray[np.bool_], channel: NDArray[np.int64], images: _Floats
) -> None:
    with traced("loader: images"):
        _fill_images(first, step, decoded, flip, channel, IMAGE_MEAN, images)


@compiled
def _fill_images(
    first: int,
    step: int,
    decoded: _Pixels,
    flip: NDArray[np.bool_],
    channel: _Places,
    mean: _Floats,
    images: _Floats,
) -> None:
    size = images.shape[1]
    row = np.empty(3 * size, np.uint8)
    means = np.empty(3 * size, np.float32)
    for i in range(first, len(images), step):
        for j in range(3 * size):
            means[j] = mean[channel[i]] if channel[i] >= 0 else mean[j % 3]
        for y in range(size):
            stored = decoded[i, y].reshape(-1)
            if channel[i] >= 0:
                _repeat_channel(stored, channel[i], row)
                stored = row
            if flip[i]:
                _normalise_mirrored(stored, means, images[i, y].reshape(-1))
            else:
                _normalise(stored, means, images[i, y].reshape(-1))


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
def _normalise_mirrored(stored: _Pixels, means: _Floats, out: _Floats) -> None:
    size = len(out) // 3
    for x in range(size):
        for axis in range(3):
            out[3 * x + axis] = np.float32(stored[3 * (size - 1 - x) + axis]) * np.float32(1 / 255) - means[axis]
