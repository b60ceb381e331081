"""Subjects of evaluations: a backbone, and how it sees images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.batch import Target, Task
from fastssl.config import Config
from fastssl.errors import DataError, UsageError
from fastssl.loader import Batches, Domain, LoaderOptions, check_input_size, evaluation_domain
from fastssl.methods import Dense, Method, measured_method
from fastssl.shards import DomainName
from fastssl.train import check_data, load_trained, run_device

log = logging.getLogger(__name__)

_BATCH = 32
_CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something whose features are measured."""

    name: str
    """The word for it in tables."""
    backbone: Backbone
    """In evaluation mode, on the device."""
    layer: str
    """Layer of the backbone whose features are compared."""
    config: Config
    """The settings of a run that sees images in the same way: size, window, colours."""
    predict: Callable[[Tensor], dict[str, Tensor]] | None
    """Images to the tasks' predictions in the units of a batch's targets; None where no task was learnt."""
    tasks: tuple[Task, ...]
    """The tasks that are predicted."""

    def domain(self, name: DomainName, dataset: str | PathLike[str], targets: Collection[Target] = ()) -> Domain:
        """A dataset as the backbone sees it; raises as `fastssl.loader.evaluation_domain`."""
        return evaluation_domain(name, dataset, self.config, targets)

    def sees(self, domain: Domain) -> Domain:
        """The images of a domain as the backbone sees them, whoever opened them.

        Raises:
            DataError: they are smaller than its input.
        """
        seen = replace(domain, config=self.config)
        check_input_size(seen, DataError, "pack them larger")
        return seen

    def baselines(self) -> Sequence[Subject]:
        """What it is compared with whenever it is measured; nothing unless it was trained here."""
        return ()

    def training_domain(self, name: DomainName, targets: Collection[Target] = ()) -> Domain:
        """The datasets of a domain that it was trained on.

        Raises:
            UsageError: it is no run.
        """
        raise UsageError("only a run knows its training data", where=self.name, seen="a subject that is no run")


@dataclass(frozen=True, kw_only=True)
class RunSubject(Subject):
    """A run that is measured."""

    run: Path
    fingerprints: Mapping[str, str]
    """Fingerprint of the datasets of each domain that it was trained on."""

    def training_domain(self, name: DomainName, targets: Collection[Target] = ()) -> Domain:
        """The datasets that the run names for a domain, on which an evaluation fits what it compares with.

        Raises:
            UsageError: the run names none.
            DataError: they are gone, damaged, or no longer those that the run was trained on.
        """
        weights = self.config.data.datasets(name)
        if not weights:
            raise UsageError(
                f"the run names no {name} dataset",
                where=self.run,
                hint=f"give --fit-{name}, or train with --{name}, even if nothing learns it",
            )
        try:
            domain = evaluation_domain(name, weights, self.config, targets)
        except DataError as error:
            raise DataError(
                f"the training data of the run {self.run} cannot be used: {error.what}",
                where=error.where,
                seen=error.seen,
                expected=error.expected,
                hint="put them back where the run found them, the evaluation compares with them",
            ) from error
        if self.fingerprints.get(name):
            check_data(self.fingerprints, {name: domain.fingerprint}, self.config, DataError)
        else:
            log.warning(
                "the run %s read no %s data; the evaluation takes %s as it is", self.run, name, domain.samples.path
            )
        return domain

    def baselines(self) -> Sequence[Subject]:
        """The networks as the run started."""
        return (self.untrained(),)

    def untrained(self) -> Subject:
        """The networks as the run started, in evaluation mode.

        Their batch norms have the statistics of the first batches of the first domain that the run was trained on: with
        the statistics they are built with, 0 and 1, a deep network's features would be arbitrary, and too easy to beat.
        """
        method = measured_method(self.config)
        method.networks.to(run_device())
        _calibrate(method, self.training_domain(method.domains(self.config)[0].name))
        return _subject("untrained", method, self.config)


def run_subject(run: Path, name: str = "trained") -> RunSubject:
    """The trained networks of a run and what is known of it.

    Args:
        run: the run folder, for its last checkpoint, or a checkpoint of it, such as ``RUN/checkpoints/best.pt``.
        name: the word for it in tables.

    Raises:
        DataError: the folder is no run, or has no sound checkpoint.
    """
    trained = load_trained(run)
    trained.method.networks.to(run_device())
    subject = _subject(name, trained.method, trained.config)
    return RunSubject(**vars(subject), run=trained.run, fingerprints=trained.fingerprints)


def _subject(name: str, method: Method, config: Config) -> Subject:
    dense = method if isinstance(method, Dense) else None
    return Subject(
        name=name,
        backbone=method.backbone,
        layer=method.compared_layer,
        config=config,
        predict=None if dense is None else dense.predict,
        tasks=() if dense is None else dense.tasks,
    )


def _calibrate(method: Method, training: Domain) -> None:
    """Give the batch norms the statistics of some batches, but for those of frozen layers, which keep theirs."""
    forward = method.predict if isinstance(method, Dense) else method.backbone
    method.networks.train()
    for norm in method.networks.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.training and norm.track_running_stats:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
    with torch.no_grad(), every_sample(training) as batches:
        for batch in islice(batches, _CALIBRATION_BATCHES):
            forward(batch.image)
    method.networks.eval()


def every_sample(domain: Domain) -> Batches:
    """Every sample of a domain once, through its centre window."""
    options = LoaderOptions(device=run_device(), threads=domain.config.train.threads)
    return domain.evaluation_batches(options, _BATCH)
