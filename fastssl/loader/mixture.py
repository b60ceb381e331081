"""Several packed datasets as one: their samples numbered one after another."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, count
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastssl.addresses import is_remote, local_path
from fastssl.errors import ConfigError, DataError
from fastssl.loader.order import MixedOrder, mixed_order
from fastssl.loader.plan import Plan, RankSlice, Step, ViewSettings, endless_plan
from fastssl.shards import Allocate, DomainName, ImageCodec, ShardSet, StoredSample
from fastssl.shards.codec import TargetCodec

_BATCHES_AHEAD = 8


class Mixture:
    """The datasets of a domain, read like a single `ShardSet`.

    Raises:
        DataError: the datasets differ in the size of their images or in a codec, or only some have targets.
    """

    def __init__(self, datasets: Sequence[ShardSet], weights: Sequence[float] | None = None) -> None:
        self.datasets = tuple(datasets)
        self.weights = tuple(weights) if weights is not None else tuple(float(len(dataset)) for dataset in datasets)
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))
        first, *others = self.datasets
        for other in others:
            for name, seen, expected in (
                ("image sizes", other.image_size, first.image_size),
                ("members", _kind(other), _kind(first)),
                ("codecs of images", other.manifest.settings.image_codec, first.manifest.settings.image_codec),
                ("codecs of targets", other.target_codec, first.target_codec),
            ):
                if seen != expected:
                    raise DataError(
                        f"datasets with different {name} cannot be mixed",
                        where=str(other.path),
                        seen=seen,
                        expected=f"{expected} as in {first.path}",
                        hint="pack them with the same --size and codecs, and labelled datasets apart from photos",
                    )

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.datasets[0].image_size

    @property
    def image_codec(self) -> ImageCodec:
        """Codec of the images, which names their member."""
        return self.datasets[0].image_codec

    @property
    def has_targets(self) -> bool:
        """Samples have depth, normal and edge."""
        return self.datasets[0].has_targets

    @property
    def target_codec(self) -> TargetCodec:
        """Codec of the target blocks, if samples have any."""
        return self.datasets[0].target_codec

    @property
    def target_member(self) -> str:
        """Name of the member with the targets, if samples have any."""
        return self.datasets[0].target_member

    @property
    def path(self) -> str:
        """Paths of all datasets, for messages."""
        return ", ".join(str(dataset.path) for dataset in self.datasets)

    @property
    def fingerprint(self) -> str:
        """A hash of all that is in the shards: the same data, the same fingerprint."""
        digest = hashlib.sha256()
        for dataset in self.datasets:
            digest.update("".join([*(shard.sha256 for shard in dataset.manifest.shards), "\n"]).encode())
        return digest.hexdigest()

    def order(self, *, seed: int, stream: int, buffer: int = 0) -> MixedOrder:
        """The endless random order of the samples; the arguments are those of `mixed_order`."""
        sizes = [dataset.shard_sizes for dataset in self.datasets]
        return mixed_order(sizes, self.weights, seed=seed, stream=stream, buffer=buffer)

    def training_plan(self, settings: ViewSettings, rank_slice: RankSlice, *, position: int = 0) -> Plan:
        """The plan of that name; as its steps are taken, remote shards that come next are fetched.

        Raises:
            ConfigError: the shards that are shuffled together do not fit into the cache of a remote dataset, so that
                each sample would fetch its shard again.
        """
        plan = endless_plan(settings, rank_slice, position=position)
        if not any(dataset.is_remote for dataset in self.datasets):
            return plan
        for shards, order in zip(self.datasets, rank_slice.order.datasets, strict=True):
            _check_room(shards, order.buffer or order.num_samples)
        return replace(plan, steps=self._staged(plan.steps, rank_slice, position))

    def _staged(self, steps: Iterator[Step], rank_slice: RankSlice, position: int) -> Iterator[Step]:
        ahead = max(_BATCHES_AHEAD * rank_slice.global_batch, *(order.buffer for order in rank_slice.order.datasets))
        for batch, step in zip(count(position, rank_slice.global_batch), steps, strict=False):
            dataset, place = rank_slice.order.turns(batch, ahead)
            for number, (shards, order) in enumerate(zip(self.datasets, rank_slice.order.datasets, strict=True)):
                mine = place[dataset == number]
                if shards.is_remote and len(mine):
                    shards.prefetch(order.shards(int(mine[0]), len(mine)))
            yield step

    def close(self) -> None:
        """Close the open shards of all datasets; reading opens them again."""
        for dataset in self.datasets:
            dataset.close()

    def read(self, index: int, names: Sequence[str], allocate: Allocate) -> StoredSample:
        """Some members of a sample; raises as `ShardSet.read`."""
        dataset, local = self._find(index)
        return dataset.read(local, names, allocate)

    def read_many(
        self, indices: NDArray[np.int64], names: Sequence[str], memory: NDArray[np.uint8]
    ) -> tuple[list[StoredSample | None], int]:
        """Some members of many samples, and how much of the memory they take; as `ShardSet.read_many`."""
        found: list[StoredSample | None] = [None] * len(indices)
        datasets, used = np.searchsorted(self._ends, indices, side="right"), 0
        for number in np.unique(datasets).tolist():
            mine, dataset = np.flatnonzero(datasets == number), self.datasets[number]
            first = self._ends[number] - len(dataset)
            samples, num_bytes = dataset.read_many(indices[mine] - first, names, memory[used:])
            used += num_bytes
            for place, sample in zip(mine.tolist(), samples, strict=True):
                found[place] = sample
        return found, min(used, len(memory))

    def most_bytes(self, names: Sequence[str]) -> int:
        """Size of the memory that `read` needs for a sample."""
        return max(dataset.most_bytes(names) for dataset in self.datasets)

    def place(self, index: int) -> str:
        """Shard and key, for messages."""
        dataset, local = self._find(index)
        return dataset.place(local)

    def checksum(self, index: int, name: str) -> int:
        """CRC-32 of a member as it was packed."""
        dataset, local = self._find(index)
        return dataset.checksum(local, name)

    def next(self, index: int) -> int:
        """The next sample of the same dataset, after its last one the first."""
        dataset, local = self._find(index)
        return index - local + (local + 1) % len(dataset)

    def _find(self, index: int) -> tuple[ShardSet, int]:
        number = bisect_right(self._ends, index)
        dataset = self.datasets[number]
        return dataset, index - self._ends[number] + len(dataset)


def _check_room(dataset: ShardSet, shuffled: int) -> None:
    sizes = dataset.manifest.shards
    num_bytes = sum(shard.bytes for shard in sizes)
    # Whole shards are shuffled, and the next ones are fetched meanwhile.
    needed = 2 * (shuffled * num_bytes // len(dataset) + max(shard.bytes for shard in sizes))
    room = dataset.cache_bytes
    if room is not None and min(needed, num_bytes) > room:
        fits = (room // 2 - max(shard.bytes for shard in sizes)) * len(dataset) // num_bytes
        raise ConfigError(
            "the cache for remote shards is too small for what is shuffled together",
            where=str(dataset.path),
            seen=f"{shuffled} samples, {needed} bytes with those that come next",
            expected=f"at most {room} bytes",
            hint=f"set data.shuffle_buffer to {max(fits, 1)} or less, or let the cache be larger (FASTSSL_CACHE_BYTES)",
        )


def _kind(dataset: ShardSet) -> str:
    return "images with depth, normals and contours" if dataset.has_targets else "images alone"


def open_mixture(weights: Mapping[str, float] | str | PathLike[str]) -> Mixture:
    """Open a dataset, or several by their folders (or addresses) and weights.

    Raises:
        DataError, ShardError: as `ShardSet` and `Mixture`.
        ConfigError: a weight is not a finite number above 0, or two of the paths lead to the same folder.
    """
    if not isinstance(weights, Mapping):
        return Mixture([ShardSet(weights)])
    _check_weights(weights)
    _check_different(weights)
    return Mixture([ShardSet(path) for path in weights], list(weights.values()))


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights:
        raise ConfigError("no dataset is given", expected="one, or several with their weights")
    for path, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ConfigError("the weight of a dataset must be a finite number above 0", where=path, seen=repr(weight))


def _check_different(paths: Iterable[str]) -> None:
    """Refuse two spellings of one folder, whose samples would count twice."""
    seen: dict[Path, str] = {}
    for path in paths:
        if not is_remote(path):
            folder = local_path(path).resolve()
            if folder in seen:
                raise ConfigError(
                    "a dataset is given twice",
                    where=path,
                    seen=f"the same folder as {seen[folder]}",
                    hint="give it once",
                )
            seen[folder] = path


_DOMAINS: dict[DomainName, str] = {"synthetic": "rendered images with targets (synthetic)", "real": "photos (real)"}


def check_class_numbers(*datasets: ShardSet) -> None:
    """Refuse datasets that number their classes differently, as two folders do of which one lacks a class.

    Raises:
        DataError: a class has two numbers, or a number two classes; where a dataset has no names for its classes,
            nothing tells.
    """
    numbers = dict[str, tuple[int, str | Path]]()
    names = dict[int, tuple[str, str | Path]]()
    for dataset in datasets:
        for name, number in (dataset.manifest.classes or {}).items():
            expected, where = numbers.setdefault(name, (number, dataset.path))
            if expected != number:
                raise _other_numbers(dataset, f"{name} is class {number}", f"class {expected}, as in {where}")
            other, where = names.setdefault(number, (name, dataset.path))
            if other != name:
                raise _other_numbers(dataset, f"class {number} is {name}", f"{other}, as in {where}")


def _other_numbers(dataset: ShardSet, seen: str, expected: str) -> DataError:
    return DataError(
        "two datasets number their classes differently",
        where=dataset.path,
        seen=seen,
        expected=expected,
        hint="pack both from the same folder of classes, which gives them one numbering",
    )


def open_domain(weights: Mapping[str, float] | str | PathLike[str], domain: DomainName) -> Mixture:
    """`open_mixture` for datasets that were packed as what they are to be used as.

    Raises:
        DataError, ShardError: as `open_mixture`; or a dataset is of the wrong domain.
    """
    mixture = open_mixture(weights)
    for dataset in mixture.datasets:
        seen = dataset.manifest.domain
        if seen != domain:
            raise DataError(
                "the dataset is of the wrong domain",
                where=str(dataset.path),
                seen=_DOMAINS[seen],
                expected=_DOMAINS[domain],
                hint=f"give another one here; this one is for an option of {seen} images, such as --{seen}",
            )
    return mixture
