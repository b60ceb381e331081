"""Held-out images, measured between the steps of a training, which goes on as if nothing had happened."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastssl.batch import PLANES, Batch, Target
from fastssl.config import Config
from fastssl.errors import ConfigError
from fastssl.loader import Batches, Domain, LoaderOptions, evaluation_domain
from fastssl.loader.damage import Damage
from fastssl.loader.iterator import known_damage
from fastssl.methods import Dense, Method
from fastssl.metrics import VALIDATION_METRICS, Metric, knn_accuracy, plane_metrics, pooled, rank_me
from fastssl.ranks import Ranks
from fastssl.shards import CLASS_INDEX, DomainName
from fastssl.telemetry import read_metrics
from fastssl.train.stop import StopSignals

log = logging.getLogger(__name__)

PREFIX = "val/"
"""Begins the names of its values in `metrics.jsonl`."""
_BATCH = 32


class _Ended(Exception):  # noqa: N818 - it is no error
    """A signal, by its number, asks for an end."""

    def __init__(self, asked: int) -> None:
        self.asked = asked


class Found(NamedTuple):
    """What a validation found."""

    values: dict[str, float]
    """By the names of `VALIDATION_METRICS`; empty where a signal ended it, and on the ranks that do not lead."""
    asked: int
    """Number of the signal that asks for an end; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """A domain that is read again and again; each damaged sample is told once."""

    domain: Domain
    options: LoaderOptions
    damage: Damage

    def batches(self) -> Batches:
        return self.domain.evaluation_batches(self.options, _BATCH, self.damage)


@dataclass(kw_only=True)
class Validation:
    """The held-out data of a run, and what is measured of them.

    Networks are measured in evaluation mode and without mixed precision, as `fastssl eval` does, whose numbers these
    are. Afterwards they are as they were, running statistics and modes included, and no random number was drawn.
    """

    method: Method
    metrics: Mapping[str, Metric]
    """What can be measured, by name."""
    _held_out: Mapping[DomainName, _HeldOut]
    _without_value: set[str] = field(default_factory=set)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the held-out data, by domain."""
        return {name: one.domain.fingerprint for name, one in self._held_out.items()}

    def __call__(self, ranks: Ranks, stop: StopSignals) -> Found:
        """Measure, on the rank that leads; the others wait for it, however long it takes.

        Between two batches all ranks look for a signal, which ends it. That is also why none of them waits for so long
        that it would take the others for lost.
        """

        def agree(*, goes_on: bool) -> tuple[int, bool]:
            asked, on = ranks.largest([stop.wanted or 0, int(goes_on)])
            return asked, bool(on)

        def between() -> None:
            asked, _ = agree(goes_on=True)
            if asked:
                raise _Ended(asked)

        with mean_statistics(self.method.networks, ranks):
            asked, on = 0, not ranks.leads
            while on and not asked:
                asked, on = agree(goes_on=False)
            if not ranks.leads:
                return Found({}, asked)
            try:
                values = self._measured(between)
            except _Ended as ended:
                return Found({}, ended.asked)
            return Found(values, agree(goes_on=False)[0])

    @torch.no_grad()
    def _measured(self, between: Callable[[], None]) -> dict[str, float]:
        values: dict[str, float | None] = {}
        with _evaluated(self.method.networks):
            if "synthetic" in self._held_out:
                values |= self._tasks(self._held_out["synthetic"], between)
            if "real" in self._held_out:
                values |= self._probes(self._held_out["real"], between)
        found = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for name in self.metrics.keys() - found.keys() - self._without_value:
            log.warning("validation: %s has no value", name)
            self._without_value.add(name)
        return {name: found[name] for name in self.metrics if name in found}

    def _tasks(self, images: _HeldOut, between: Callable[[], None]) -> dict[str, float | None]:
        method = self.method
        assert isinstance(method, Dense)  # `open_validation` has looked
        with images.batches() as batches:
            found = plane_metrics(lambda batch: method.predict(batch.image), _each(batches, between), method.tasks)
        return {
            f"tasks/{task}/{name}": value for task, metrics in found.items() for name, value in metrics.result().items()
        }

    def _probes(self, photos: _HeldOut, between: Callable[[], None]) -> dict[str, float | None]:
        classes = list[Tensor]()

        def seen(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in _each(batches, between):
                classes.append(batch.class_index)
                yield batch

        with photos.batches() as batches:
            features = pooled(self.method.backbone, self.method.compared_layer, seen(batches))
        between()
        if not features.isfinite().all():
            return {}
        return {"probe/knn": knn_accuracy(features, torch.cat(classes), between), "probe/rankme": rank_me(features)}


def open_validation(method: Method, config: Config, options: LoaderOptions) -> Validation | None:
    """Open the held-out data that the settings name; None where they name none.

    Raises:
        DataError: a dataset is missing, damaged, of the wrong domain, or packed smaller than the network's input.
        ConfigError: the method predicts nothing of rendered images, or `train.best_by` names nothing that is measured.
    """
    held_out: dict[DomainName, _HeldOut] = {}
    targets: dict[DomainName, tuple[Target, ...]] = {"synthetic": PLANES, "real": ("class_index",)}
    options = replace(options, half=False, hw_decoder_load=0.0)
    for name, wanted in targets.items():
        datasets = config.data.datasets(f"validation_{name}")
        if datasets and config.train.validate_every:
            domain = evaluation_domain(name, datasets, config, wanted)
            held_out[name] = _HeldOut(
                domain=domain, options=options, damage=known_damage(domain.samples, options, wanted)
            )
    if "synthetic" in held_out and not isinstance(method, Dense):
        raise ConfigError(
            "the method predicts nothing that rendered images could be held against",
            where="data.validation_synthetic",
            seen=f"method {config.method}",
            hint="leave --validation-synthetic out; --validation-real measures the features of any method",
        )
    metrics = {name: metric for name, metric in VALIDATION_METRICS.items() if _is_measured(name, method, held_out)}
    _check_best_by(config, metrics)
    return Validation(method=method, metrics=metrics, _held_out=held_out) if held_out else None


def _is_measured(name: str, method: Method, held_out: Mapping[DomainName, _HeldOut]) -> bool:
    kind, what = name.split("/")[:2]
    if kind == "tasks":
        return "synthetic" in held_out and isinstance(method, Dense) and what in method.tasks
    if "real" not in held_out:
        return False
    datasets = held_out["real"].domain.samples.datasets
    return what != "knn" or any(CLASS_INDEX in dataset.manifest.members for dataset in datasets)


def _check_best_by(config: Config, metrics: Mapping[str, Metric]) -> None:
    name = config.train.best_by
    known = [other for other, metric in metrics.items() if metric.better]
    if name in ("none", *known):
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    if not config.train.validate_every:
        expected = "none, or train.validate_every above 0"
    elif not known:
        expected = "a run with validation: give --validation-real or --validation-synthetic"
    else:
        expected = f"{nearest[0]!r}? " if nearest else ""
        expected += f"All that are measured: {', '.join(known)}"
    what = "no checkpoint can be the best by this" if name in VALIDATION_METRICS else "there is no such metric"
    raise ConfigError(what, where="train.best_by", seen=repr(name), expected=expected)


def validation_summary(run: Path) -> dict[str, object]:
    """The section `validation` of a run's summary, if there was any: of each metric the last and the best value."""
    last: dict[str, dict[str, float]] = {}
    best: dict[str, dict[str, float]] = {}
    for line in read_metrics(run):
        for name, metric in VALIDATION_METRICS.items():
            value = line.get(f"{PREFIX}{name}")
            if value is None:
                continue
            last[name] = {"value": value, "step": line["step"]}
            if metric.better and (name not in best or metric.cost(value) < metric.cost(best[name]["value"])):
                best[name] = last[name]
    return {"validation": {"last": last, "best": best}} if last else {}


def moving_statistics(networks: nn.Module) -> Iterator[Tensor]:
    """Buffers by which a step's batch is remembered: batch norms' running means and variances.

    All others, and those of frozen layers, are the same on all ranks, and a mean would round them.
    """
    for module in networks.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            yield from (x for x in (module.running_mean, module.running_var) if x is not None)


@contextmanager
def mean_statistics(networks: nn.Module, ranks: Ranks) -> Iterator[None]:
    """The means of all ranks' running statistics, as a checkpoint has them; afterwards each has its own again."""
    own = list(moving_statistics(networks)) if ranks.world_size > 1 else []
    kept = [buffer.clone() for buffer in own]
    ranks.average(own)
    try:
        yield
    finally:
        for buffer, before in zip(own, kept, strict=True):
            buffer.copy_(before)


@contextmanager
def _evaluated(networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode; afterwards each part is in the mode that it was in."""
    trained = [part for part in networks.modules() if part.training]
    networks.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def _each(batches: Iterable[Batch], between: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        between()
        yield batch
