"""The order in which samples are seen: pure functions of the seed and the position, over one dataset or several.

The positions 0, 1, 2 ... of a domain are endless. Nothing here has a state, so whoever knows a position knows what
follows, whatever went before and however many ranks share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Distinguish the random streams that share a seed. Not zero: NumPy pads short seeds with zeros.
_SHARDS, _SAMPLES = 1, 2

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOrder:
    """The endless order of one dataset: epoch after epoch, each sample once in each.

    In every epoch the shards come in a new random order. As many neighbours of that order as hold `buffer` samples
    make a group, and the samples of a group are shuffled all together. So only a group's shards need to be at hand,
    and the next ones. A buffer as large as the dataset shuffles it perfectly. Only the group in use is in memory, with
    4 bytes a sample (up to 2^32 samples).
    """

    shard_sizes: tuple[int, ...]
    """Samples in each shard."""
    seed: tuple[int, ...]
    """The seed of this dataset in this domain."""
    buffer: int
    """Samples; 0 = all."""
    _shuffled: _Shuffled = field(init=False, repr=False, compare=False, default_factory=lambda: _Shuffled())

    @property
    def num_samples(self) -> int:
        return sum(self.shard_sizes)

    def samples(self, positions: Positions) -> Positions:
        """Numbers of the samples at these positions of the dataset's own sequence, any shape."""
        found = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_samples)
        for epoch in np.unique(epochs).tolist():
            ends = self.groups(epoch)[1]
            groups = np.searchsorted(ends, places, side="right")
            here = epochs == epoch
            for group in np.unique(groups[here]).tolist():
                mine = here & (groups == group)
                first = ends[group - 1] if group else 0
                found[mine] = self._shuffled.group(self, epoch, group)[places[mine] - first]
        return found

    def shards(self, position: int, count: int) -> list[int]:
        """Numbers of the shards that the next `count` positions need, in the order in which they are needed."""
        needed: dict[int, None] = {}
        end = position + count
        while position < end:
            epoch, place = divmod(position, self.num_samples)
            groups, ends = self.groups(epoch)
            group = int(np.searchsorted(ends, place, side="right"))
            needed |= dict.fromkeys(groups[group])
            position += int(ends[group]) - place
        return list(needed)

    def groups(self, epoch: int) -> tuple[tuple[tuple[int, ...], ...], Positions]:
        """The shards of each group of an epoch, and the places at which the groups end."""
        return _groups(self.shard_sizes, self.seed, self.buffer or self.num_samples, epoch)


@lru_cache(maxsize=64)
def _groups(
    shard_sizes: tuple[int, ...], seed: tuple[int, ...], buffer: int, epoch: int
) -> tuple[tuple[tuple[int, ...], ...], Positions]:
    rng = np.random.default_rng([*seed, _SHARDS, epoch])
    groups, ends, group, place, start = list[tuple[int, ...]](), list[int](), list[int](), 0, 0
    for shard in rng.permutation(len(shard_sizes)).tolist():
        group.append(shard)
        place += shard_sizes[shard]
        if place - start >= buffer:
            groups.append(tuple(group))
            ends.append(place)
            group, start = [], place
    if group:
        groups.append(tuple(group))
        ends.append(place)
    return tuple(groups), np.array(ends)


class _Shuffled:
    """The samples of the group that an order was asked for last, and of no other: a group may be a whole dataset."""

    def __init__(self) -> None:
        self._latest: tuple[tuple[int, int], NDArray[np.unsignedinteger]] | None = None

    def group(self, order: DatasetOrder, epoch: int, group: int) -> NDArray[np.unsignedinteger]:
        """Numbers of a group's samples in their order."""
        latest = self._latest
        if latest is None or latest[0] != (epoch, group):
            del latest
            self._latest = None  # before the next one is made, so that there are never two
            latest = self._latest = (epoch, group), _shuffled(order, epoch, group)
        return latest[1]


def _shuffled(order: DatasetOrder, epoch: int, group: int) -> NDArray[np.unsignedinteger]:
    ends = np.cumsum(order.shard_sizes)
    shards = order.groups(epoch)[0][group]
    samples = np.empty(sum(order.shard_sizes[shard] for shard in shards), np.min_scalar_type(ends[-1]))
    place = 0
    for shard in shards:
        end, size = ends[shard], order.shard_sizes[shard]
        samples[place : place + size] = np.arange(end - size, end)
        place += size
    # The numbers that are drawn, and so the order, do not depend on the type.
    np.random.default_rng([*order.seed, _SAMPLES, epoch, group]).shuffle(samples)
    return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedOrder:
    """The endless order of a domain: its datasets, each at its own pace and in its own order.

    In any stretch of n positions each dataset comes n times its fraction, within one sample for two datasets (and
    within as many as there are others for more): sample j of fraction w is due at (j + 1/2) / w, and whatever is
    due first comes first.
    """

    datasets: tuple[DatasetOrder, ...]
    fractions: tuple[float, ...]
    """The fraction of each dataset, above 0; their sum is 1."""
    seed: int
    """The seed of the run."""
    stream: int
    """Number of the domain, so that the domains' random choices are independent."""
    _offsets: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [dataset.num_samples for dataset in self.datasets]
        object.__setattr__(self, "_offsets", tuple(sum(sizes[:i]) for i in range(len(sizes))))

    @property
    def num_samples(self) -> int:
        return sum(dataset.num_samples for dataset in self.datasets)

    def samples(self, first: int, count: int) -> Positions:
        """Numbers of the samples at `count` positions from `first` on; the datasets are numbered one after another."""
        dataset, position = self.turns(first, count)
        found = np.empty(count, np.int64)
        for number, order in enumerate(self.datasets):
            mine = dataset == number
            found[mine] = self._offsets[number] + order.samples(position[mine])
        return found

    def turns(self, first: int, count: int) -> tuple[Positions, Positions]:
        """Turns of the datasets at `count` positions from `first` on: number of the dataset, and position inside it."""
        if len(self.datasets) == 1:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        # By time t, about t samples were due; the few that rounding moves are made sure of by a margin.
        margin = len(self.datasets)
        start, stop = first - margin, first + count + margin
        due, dataset, position = [], [], []
        before = 0
        for number, fraction in enumerate(self.fractions):
            low, high = (max(0, int(np.ceil(fraction * time - 0.5))) for time in (start, stop))
            before += low
            due.append((np.arange(low, high) + 0.5) / fraction)
            dataset.append(np.full(high - low, number))
            position.append(np.arange(low, high))
        turn = np.lexsort([np.concatenate(dataset), np.concatenate(due)])[first - before : first - before + count]
        return np.concatenate(dataset)[turn], np.concatenate(position)[turn]


def mixed_order(
    shard_sizes: Sequence[Sequence[int]], weights: Sequence[float], *, seed: int, stream: int, buffer: int = 0
) -> MixedOrder:
    """The order of a domain.

    Args:
        shard_sizes: samples in each shard of each dataset.
        weights: of the datasets, above 0; they need not add up to 1.
        seed: of the run.
        stream: number of the domain, so that the domains' random choices are independent.
        buffer: samples that are shuffled together; 0 = all of a dataset.
    """
    total = sum(weights)
    return MixedOrder(
        datasets=tuple(
            DatasetOrder(shard_sizes=tuple(sizes), seed=(seed, stream, number), buffer=buffer)
            for number, sizes in enumerate(shard_sizes)
        ),
        fractions=tuple(weight / total for weight in weights),
        seed=seed,
        stream=stream,
    )
