"""Which samples make a step, and how each is seen: pure functions of the seed and the position.

Nothing here has a state. A domain's samples stand at the positions 0, 1, 2 ... of an endless sequence; which sample
stands at a position, and through which window it is seen there, depends on seed and position alone. So a run that is
continued at a position needs no more than its number, every rank can tell by itself what all others do, and another
number of ranks, or another batch size, goes on with the very same samples and views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader.order import MixedOrder

# Distinguishes this random stream from others that share the seed.
_VIEW = 3

_DRAWS = 16
"""Random numbers per position: some more than are used, in whole blocks of the generator's four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSlice:
    """The part of a domain's samples that one rank reads.

    Steps cut the endless sequence into global batches of ``batch_size * world_size`` positions, and each rank takes its
    slice. So all ranks make the same number of steps whatever the number of samples, and in every epoch of a dataset
    each sample comes exactly once.
    """

    order: MixedOrder
    batch_size: int
    """Samples per step and rank."""
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def first(self, batch: int) -> int:
        """First position of this rank's part of the global batch that begins at position `batch`."""
        return batch + self.rank * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """How each of N samples is seen: one window and flip, shared by all its planes, and what is done to its colours.

    Windows are whole pixels of the stored image, so that one as large as the network's input is cut out
    without any interpolation.
    """

    position: NDArray[np.int64]
    """Place of the sample in the endless sequence; in an evaluation, its number."""
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    channel: NDArray[np.int64]
    """Colour channel (0 to 2) that is repeated three times; -1 = colour."""
    colour: NDArray[np.float32]
    """(N, 4): factors of brightness, contrast and saturation, and degrees by which hues turn; 1, 1, 1, 0 = as it is."""
    blur: NDArray[np.float32]
    """Deviation of a Gaussian blur, in pixels of the network's input; 0 = none."""

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

    def neighbours(self, size: int) -> Neighbours:
        """Between which stored pixels of the window the output's pixel centres lie, and how far along.

        Returns:
            First rows, second rows, fractions of the second (N, size) each, and the same of the columns, which run from
            right to left where the sample is flipped.
        """
        rows = _neighbours(self.top, self.height, size)
        columns = _neighbours(self.left, self.width, size)
        mirrored = tuple(np.where(self.flip[:, None], plane[:, ::-1], plane) for plane in columns)
        return (*rows, *mirrored)

    def cells(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First stored row and column, (N, size) each and without the flip, of the cells that share out the window.

        Cell i reaches to the start of cell i + 1, the last one to the end of the window: every stored pixel
        belongs to one cell, so a thin contour survives being made smaller.
        """
        return self.top[:, None] + _shares(self.height, size), self.left[:, None] + _shares(self.width, size)


Neighbours = tuple[NDArray[Any], ...]
"""(first, second, fraction of the second) of rows and of columns."""


def _neighbours(start: NDArray[np.int64], length: NDArray[np.int64], size: int) -> Neighbours:
    # (i + 1/2) * length / size - 1/2, times 2 * size: whole numbers, so a window as large as the output has only 0.
    place = (2 * np.arange(size) + 1) * length[:, None] - size
    before, rest = np.divmod(place, 2 * size)
    first, second = (np.clip(index, 0, length[:, None] - 1) for index in (before, before + 1))
    return start[:, None] + first, start[:, None] + second, (rest / (2 * size)).astype(np.float32)


def _nearest(length: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    # floor((i + 1/2) * length / size), in whole numbers so that no rounding can differ between machines.
    return _for_each_length(lambda some: (2 * np.arange(size) + 1) * some // (2 * size), length)


def _shares(length: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return _for_each_length(lambda some: np.arange(size) * some // size, length)


def _for_each_length(
    of: Callable[[NDArray[np.int64]], NDArray[np.int64]], length: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A row for each length, (N, size); of those that are alike, as all are that are only cut, it is divided once."""
    different, place = np.unique(length, return_inverse=True)
    return of(different[:, None])[place]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """From what the views of a domain are drawn."""

    data: DataConfig
    augment: AugmentConfig
    stored: tuple[int, int]
    """Height and width of the stored images."""
    whole: bool = False
    """See the whole image instead of a window."""


def training_views(settings: ViewSettings, rank_slice: RankSlice, batch: int) -> Views:
    """Random views of this rank's part of the global batch that begins at position `batch`."""
    data, augment, stored = settings.data, settings.augment, settings.stored
    first, num = rank_slice.first(batch), rank_slice.batch_size
    draws = _draws(rank_slice.order, first, num)
    side, across, down, flip, channel, aspect, is_blurred, sigma, *colour = draws
    smallest, largest = (1.0, 1.0) if settings.whole else data.window
    part = smallest + side * (largest - smallest)
    narrow, wide = (1.0, 1.0) if settings.whole else augment.aspect
    stretch = np.sqrt(narrow * (wide / narrow) ** aspect)
    height, width = (
        np.clip(np.rint(part * length * by), 1, length).astype(np.int64)
        for length, by in zip(stored, (1 / stretch, stretch), strict=True)
    )
    if data.gray == "per_batch":
        channel = _draws(rank_slice.order, batch, 1)[4]
    low, high = augment.blur_sigma
    return Views(
        position=np.arange(first, first + num),
        top=(down * (stored[0] - height + data.last_corner)).astype(np.int64),
        left=(across * (stored[1] - width + data.last_corner)).astype(np.int64),
        height=height,
        width=width,
        flip=flip < data.flip,
        channel=np.broadcast_to((3 * channel).astype(np.int64) if data.gray != "off" else -1, len(side)).copy(),
        colour=_colour(augment, np.stack(colour[:4], axis=1)),
        blur=np.where(is_blurred < augment.blur, low + sigma * (high - low), 0).astype(np.float32),
    )


def _draws(order: MixedOrder, first: int, num: int) -> NDArray[np.float64]:
    """Random numbers in 0..1 of `num` positions, (_DRAWS, num); the same ones wherever one begins."""
    key = np.random.SeedSequence([order.seed, order.stream, _VIEW]).generate_state(2, np.uint64)
    # A counter of Philox stands for four numbers.
    generator = np.random.Generator(np.random.Philox(key=key, counter=first * (_DRAWS // 4)))
    return generator.random((num, _DRAWS)).T


def _colour(augment: AugmentConfig, draws: NDArray[np.float64]) -> NDArray[np.float32]:
    reach = np.array([augment.brightness, augment.contrast, augment.saturation, augment.hue])
    colour: NDArray[np.float64] = np.array([1, 1, 1, 0]) + (2 * draws - 1) * reach
    return colour.astype(np.float32)


def centre_views(settings: ViewSettings, samples: NDArray[np.int64]) -> Views:
    """The centre windows that evaluations use: as large as the mean training window, nothing else; green if gray."""
    data, stored, num = settings.data, settings.stored, len(samples)
    height, width = _window(settings, _mean_part(settings))
    return Views(
        position=samples,
        top=np.full(num, (stored[0] - height) // 2),
        left=np.full(num, (stored[1] - width) // 2),
        height=np.full(num, height),
        width=np.full(num, width),
        flip=np.zeros(num, dtype=bool),
        channel=np.full(num, -1 if data.gray == "off" else 1),
        colour=np.tile(np.array([1, 1, 1, 0], np.float32), (num, 1)),
        blur=np.zeros(num, np.float32),
    )


Step = tuple[NDArray[np.int64], Views]
"""Numbers of a batch's samples, and how each is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a loader, and what is common to all of them."""

    settings: ViewSettings
    batch_size: int
    """Largest number of samples in a step."""
    cuts: bool
    """Every window has the size of the network's input: nothing is resampled."""
    steps: Iterator[Step]


def endless_plan(settings: ViewSettings, rank_slice: RankSlice, *, position: int = 0) -> Plan:
    """Endless random steps; the first global batch begins at `position`."""

    def steps() -> Iterator[Step]:
        for batch in count(position, rank_slice.global_batch):
            samples = rank_slice.order.samples(rank_slice.first(batch), rank_slice.batch_size)
            yield samples, training_views(settings, rank_slice, batch)

    smallest, largest = (1.0, 1.0) if settings.whole else settings.data.window
    fixed = smallest == largest and (settings.whole or settings.augment.aspect == (1.0, 1.0))
    cuts = fixed and _window(settings, smallest) == (settings.data.size,) * 2
    return Plan(settings=settings, batch_size=rank_slice.batch_size, cuts=cuts, steps=steps())


def evaluation_plan(settings: ViewSettings, num_samples: int, batch_size: int) -> Plan:
    """Every sample once, in the order of the shards, seen through its centre window; the last batch may be smaller."""
    firsts = range(0, num_samples, batch_size)
    batches = (np.arange(first, min(first + batch_size, num_samples)) for first in firsts)
    return chosen_plan(settings, batches, batch_size)


def chosen_plan(settings: ViewSettings, batches: Iterable[NDArray[np.int64]], batch_size: int) -> Plan:
    """Samples by their numbers, in batches of at most `batch_size`, each seen through its centre window."""
    steps = ((samples, centre_views(settings, samples)) for samples in batches)
    plain = replace(settings, augment=AugmentConfig())
    cuts = _window(settings, _mean_part(settings)) == (settings.data.size,) * 2
    return Plan(settings=plain, batch_size=batch_size, cuts=cuts, steps=steps)


def _mean_part(settings: ViewSettings) -> float:
    return 1.0 if settings.whole else sum(settings.data.window) / 2


def _window(settings: ViewSettings, part: float) -> tuple[int, int]:
    """Height and width of a window, in stored pixels."""
    height, width = (max(round(part * length), 1) for length in settings.stored)
    return height, width
