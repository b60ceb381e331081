"""A domain: a named stream of samples, and all that there is to know of it, in one place.

Training, evaluations and benchmarks read their batches from it, so that none of them measures another loader than the
one that trains.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import PLANES, Target
from fastssl.config import Config
from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.loader.damage import Damage
from fastssl.loader.iterator import Batches, LoaderOptions, load_batches
from fastssl.loader.mixture import Mixture, check_class_numbers, open_domain
from fastssl.loader.plan import Plan, RankSlice, ViewSettings, chosen_plan, evaluation_plan
from fastssl.shards import CLASS_INDEX, DomainName

_SEED_STREAMS: dict[DomainName, int] = {"synthetic": 0, "real": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRequest:
    """A domain that a method wants."""

    name: DomainName
    targets: tuple[Target, ...] = ()
    """Targets that come with the images."""
    hint: str = ""
    """Advice for those who have no such dataset, besides giving one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A stream of samples as a run with these settings sees it."""

    name: DomainName
    samples: Mixture
    targets: frozenset[Target]
    config: Config

    @property
    def batch_size(self) -> int:
        """Images per step and rank."""
        return self.config.data.batch_size(self.name)

    @property
    def fingerprint(self) -> str:
        """Hash of all that is in the shards."""
        return self.samples.fingerprint

    @property
    def bytes_per_image(self) -> float:
        """Mean of what is read of a sample, over the datasets by their weights."""
        samples = self.samples
        members = [samples.image_codec.member, *([] if self.targets.isdisjoint(PLANES) else [samples.target_member])]
        means = [
            sum(bytes_of[name].total / bytes_of[name].count for name in members)
            for bytes_of in (dataset.manifest.statistics.member_bytes for dataset in samples.datasets)
        ]
        weighted = zip(samples.weights, means, strict=True)
        return sum(weight * mean for weight, mean in weighted) / sum(samples.weights)

    def plan(self, *, position: int = 0, batch_size: int | None = None, rank: int = 0, world_size: int = 1) -> Plan:
        """Endless random steps of a rank, of which the first, over all ranks, begins at `position`."""
        config = self.config
        order = self.samples.order(
            seed=config.train.seed, stream=_SEED_STREAMS[self.name], buffer=config.data.shuffle_buffer
        )
        size = batch_size or self.batch_size
        rank_slice = RankSlice(order=order, batch_size=size, rank=rank, world_size=world_size)
        return self.samples.training_plan(self._views(), rank_slice, position=position)

    def training_batches(
        self, options: LoaderOptions, *, position: int = 0, rank: int = 0, world_size: int = 1
    ) -> Batches:
        """The endless random batches of a training, from a position on: those of one rank."""
        plan = self.plan(position=position, rank=rank, world_size=world_size)
        return load_batches(self.samples, plan, options, self.targets)

    def evaluation_batches(self, options: LoaderOptions, batch_size: int, damage: Damage | None = None) -> Batches:
        """Every sample once, in the order of the shards, through its centre window; the last batch may be smaller.

        With `damage`, known from an earlier pass, a damaged sample is not told again.
        """
        plan = evaluation_plan(self._views(), len(self.samples), batch_size)
        return load_batches(self.samples, plan, options, self.targets, damage)

    def chosen_batches(self, options: LoaderOptions, batches: Iterable[NDArray[np.int64]], batch_size: int) -> Batches:
        """Samples by their numbers, in batches of at most `batch_size`, through their centre windows."""
        plan = chosen_plan(self._views(), batches, batch_size)
        return load_batches(self.samples, plan, options, self.targets)

    def _views(self) -> ViewSettings:
        data, augment = self.config.data, self.config.augment
        whole = data.sees_whole(self.name)
        return ViewSettings(data=data, augment=augment, stored=self.samples.image_size, whole=whole)


def training_domains(requests: Iterable[DomainRequest], config: Config, *, any_size: bool = False) -> dict[str, Domain]:
    """Open the datasets that the settings name for each domain; by the domains' names.

    Args:
        requests: the domains that the method wants.
        config: the run's settings.
        any_size: the packed images may be smaller than the network's input, which no training takes.

    Raises:
        UsageError: the settings name none for a domain.
        DataError: one is missing, damaged, of the wrong domain, or lacks what is to be learnt.
        ConfigError: the packed images are smaller than the network's input.
    """
    domains: dict[str, Domain] = {}
    for request in requests:
        weights = config.data.datasets(request.name)
        if not weights:
            advice = f"add --{request.name} FOLDER" + (f", or {request.hint}" if request.hint else "")
            raise UsageError(f"no {request.name} dataset is given", hint=advice)
        samples = open_domain(weights, request.name)
        domain = Domain(name=request.name, samples=samples, targets=frozenset(request.targets), config=config)
        _check_targets(domain)
        domains[request.name] = domain
    for domain in () if any_size else domains.values():
        check_input_size(domain, ConfigError, "pack them larger, or lower data.size")
    return domains


def evaluation_domain(
    name: DomainName,
    dataset: Mapping[str, float] | str | PathLike[str],
    config: Config,
    targets: Collection[Target] = (),
) -> Domain:
    """A dataset as a run with these settings sees it when it is evaluated.

    Raises:
        DataError: it is missing, damaged, of the wrong domain, or packed smaller than the network's input; or classes
            are asked for, and parts of it number them differently.
    """
    domain = Domain(name=name, samples=open_domain(dataset, name), targets=frozenset(targets), config=config)
    if "class_index" in domain.targets:
        check_class_numbers(*domain.samples.datasets)
    check_input_size(domain, DataError, "pack them larger")
    return domain


def check_input_size(domain: Domain, error: type[ConfigError | DataError], advice: str) -> None:
    """Refuse images that are smaller than the network's input.

    Raises:
        ConfigError, DataError: as asked for.
    """
    size, stored = domain.config.data.size, domain.samples.image_size
    if min(stored) < size:
        raise error(
            "the packed images are smaller than the network's input",
            where=domain.samples.path,
            seen=f"{stored[0]} x {stored[1]} pixels",
            expected=f"at least data.size = {size}",
            hint=advice,
        )


def _check_targets(domain: Domain) -> None:
    """Refuse to learn what no sample tells: a pixel counts where its depth and its normal are known."""
    if "class_index" in domain.targets and not any(
        CLASS_INDEX in dataset.manifest.members for dataset in domain.samples.datasets
    ):
        raise DataError(
            "no photo of the dataset has a class",
            where=domain.samples.path,
            expected="photos with classes",
            hint="pack them from a folder per class",
        )
    if "class_index" in domain.targets:
        check_class_numbers(*domain.samples.datasets)
    if not {"depth", "normal"} & domain.targets:
        return
    for plane in ("depth", "normal"):
        planes = [dataset.manifest.statistics.planes.get(plane) for dataset in domain.samples.datasets]
        if not any(values.known for values in planes if values is not None):
            raise DataError(
                f"no {plane} is known in any sample of the dataset",
                where=domain.samples.path,
                expected="samples with known depth and normals",
                hint="look whether it was packed with the right layout, or learn contours alone: "
                "--set model.tasks=[edge]",
            )
