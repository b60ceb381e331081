"""Which samples make a step, and how each is seen: pure functions of the seed and the step.

Nothing here has a state, so a run that is continued at step k needs no more than the number k, and every
rank can tell by itself what all others do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from fastssl.config import DataConfig

# Distinguishes the random streams that share a seed.
_ORDER, _VIEW = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of the data that one rank of one domain reads.

    Steps cut the endless sequence of epochs into global batches of ``batch_size * world_size`` samples;
    each rank takes its slice. So all ranks make the same number of steps whatever the number of samples,
    and in every stretch of ``num_samples`` positions that starts at a multiple of it each sample comes
    exactly once.
    """

    num_samples: int
    batch_size: int
    seed: int
    stream: int
    """Number of the domain, so that the domains' random choices are independent."""
    rank: int = 0
    world_size: int = 1

    def samples(self, step: int) -> NDArray[np.int64]:
        """Numbers of the samples of this rank's batch at `step`: (batch_size,)."""
        first = (step * self.world_size + self.rank) * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        epochs, places = np.divmod(positions, self.num_samples)
        order = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order[here] = _permutation(self.num_samples, self.seed, self.stream, int(epoch))[places[here]]
        return order


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, stream: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, stream, _ORDER, epoch]).permutation(num_samples)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """How each of N samples is seen: one window, flip and channel, shared by all its planes.

    Windows are whole pixels of the stored image, so that one as large as the network's input is cut out
    without any interpolation.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    channel: NDArray[np.int64]
    """Colour channel (0 to 2) that is repeated three times; -1 = colour."""

    def __len__(self) -> int:
        return len(self.top)

    def roi(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Start and end (y, x) of the windows, (N, 2) each; x swapped where flipped, as `fn.resize` wants it."""
        x0, x1 = self.left, self.left + self.width
        start = np.stack([self.top, np.where(self.flip, x1, x0)], axis=1)
        end = np.stack([self.top + self.height, np.where(self.flip, x0, x1)], axis=1)
        return start.astype(np.float32), end.astype(np.float32)

    def ends(self) -> NDArray[np.int64]:
        """Row and column after the windows' last, (N, 2), without the flip."""
        return np.stack([self.top + self.height, self.left + self.width], axis=1)

    def sources(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The stored rows and columns, (N, size) each, whose centres are nearest to the output's pixels."""
        rows = self.top[:, None] + _nearest(self.height, size)
        columns = self.left[:, None] + _nearest(self.width, size)
        return rows, np.where(self.flip[:, None], columns[:, ::-1], columns)

    def cells(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First stored row and column, (N, size) each and without the flip, of the cells that share out the window.

        Cell i reaches to the start of cell i + 1, the last one to the end of the window: every stored pixel
        belongs to one cell, so a thin contour survives being made smaller.
        """
        fractions = np.arange(size)
        return (
            self.top[:, None] + fractions * self.height[:, None] // size,
            self.left[:, None] + fractions * self.width[:, None] // size,
        )


def _nearest(length: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    # floor((i + 1/2) * length / size), in whole numbers so that no rounding can differ between machines.
    return (2 * np.arange(size) + 1) * length[:, None] // (2 * size)


def training_views(data: DataConfig, share: Share, step: int, stored: tuple[int, int], *, whole: bool) -> Views:
    """Random windows, flips and gray channels of this rank's batch.

    The draws are made for the global batch and cut afterwards, so they do not depend on how many ranks share it.

    Args:
        data: settings `window`, `flip` and `gray`.
        share: whose batch, and from which random stream.
        step: number of the step.
        stored: height and width of the stored images.
        whole: see the whole image instead of a random window.
    """
    total = share.batch_size * share.world_size
    mine = slice(share.rank * share.batch_size, (share.rank + 1) * share.batch_size)
    rng = np.random.default_rng([share.seed, share.stream, _VIEW, step])
    side, across, down, flip = (rng.random(total)[mine] for _ in range(4))
    channel = rng.integers(3, size=total)[mine]
    if data.gray == "per_batch":
        channel = np.full(share.batch_size, rng.integers(3))
    elif data.gray == "off":
        channel = np.full(share.batch_size, -1)
    smallest, largest = (1.0, 1.0) if whole else data.window
    part = smallest + side * (largest - smallest)
    height, width = (np.maximum(np.rint(part * length).astype(np.int64), 1) for length in stored)
    return Views(
        top=(down * (stored[0] - height + 1)).astype(np.int64),
        left=(across * (stored[1] - width + 1)).astype(np.int64),
        height=height,
        width=width,
        flip=flip < data.flip,
        channel=channel,
    )


def centre_views(data: DataConfig, num: int, stored: tuple[int, int], *, whole: bool) -> Views:
    """The centre windows that evaluations use: as large as the mean training window, no flip; green if gray."""
    part = 1.0 if whole else sum(data.window) / 2
    height, width = (max(round(part * length), 1) for length in stored)
    return Views(
        top=np.full(num, (stored[0] - height) // 2),
        left=np.full(num, (stored[1] - width) // 2),
        height=np.full(num, height),
        width=np.full(num, width),
        flip=np.zeros(num, dtype=bool),
        channel=np.full(num, -1 if data.gray == "off" else 1),
    )


Step = tuple[NDArray[np.int64], Views]
"""Numbers of a batch's samples, and how each is seen."""


def training_plan(
    data: DataConfig, share: Share, stored: tuple[int, int], *, whole: bool, first_step: int
) -> Iterator[Step]:
    """Endless random steps, from `first_step` on; the arguments are those of `training_views`."""
    for step in count(first_step):
        yield share.samples(step), training_views(data, share, step, stored, whole=whole)


def evaluation_plan(
    data: DataConfig, num_samples: int, batch_size: int, stored: tuple[int, int], *, whole: bool
) -> Iterator[Step]:
    """Every sample once, in the order of the shards, seen through its centre window; the last batch may be smaller."""
    for first in range(0, num_samples, batch_size):
        samples = np.arange(first, min(first + batch_size, num_samples))
        yield samples, centre_views(data, len(samples), stored, whole=whole)
