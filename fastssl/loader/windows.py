"""Images as pixels for the graph, decoded by threads here where DALI has no decoder for them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastssl.errors import ShardError
from fastssl.loader.images import TOGETHER
from fastssl.loader.memory import Memory
from fastssl.loader.plan import Views
from fastssl.ranges import traced
from fastssl.shards import ImageCodec


class ThreadedWindows:
    """Decodes the images of a batch, many at a time.

    Args:
        codec: of the images.
        stored: their height and width.
        size: side of the windows; None = whole images, of which the graph resamples windows, and looks beyond them.
        pool: its threads do the work.
        threads: so many of them.
    """

    def __init__(
        self, codec: ImageCodec, stored: tuple[int, int], size: int | None, pool: ThreadPoolExecutor, threads: int
    ) -> None:
        self._codec, self._stored, self._pool, self._threads = codec, stored, pool, threads
        self._whole = size is None
        self._shape = (*(stored if size is None else (size, size)), 3)
        self._memory = Memory()

    def decode(self, members: Sequence[NDArray[np.uint8]], views: Views) -> tuple[NDArray[np.uint8], ShardError | None]:
        """A batch of images, (N, h, w, 3), without their flips; and the error of one that is damaged, if one is."""
        shape = (len(members), *self._shape)
        pixels = self._memory.lend(int(np.prod(shape))).reshape(shape)
        corners = np.stack([views.top, views.left], axis=1) * (not self._whole)

        def fill(first: int) -> ShardError | None:
            error = None
            with traced("loader: windows"):
                for start in range(first * TOGETHER, len(members), self._threads * TOGETHER):
                    some = slice(start, start + TOGETHER)
                    try:
                        self._codec.decode_windows(members[some], self._stored, corners[some], pixels[some])
                    except ShardError as damage:
                        error = damage
            return error

        errors = list(self._pool.map(fill, range(min(self._threads, len(members)))))
        return pixels, next((error for error in errors if error is not None), None)
