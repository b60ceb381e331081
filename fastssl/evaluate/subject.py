"""Subjects of evaluations: a backbone, and how it sees images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from fastssl.train import check_data, initialise_by_first_images, load_trained, run_device

log = logging.getLogger(__name__)

REESTIMATED = "_reestimated"
"""What the name of a subject ends in whose batch norms have the statistics of the images that are measured."""
_SAME = "no batch norm that is measured has statistics that may change, so its numbers would be those of trained"
_BATCH = 32
_CALIBRATION_BATCHES = 8
_STATISTICS_BATCHES = 128
"""Batches at most that batch norms get new statistics of."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something whose features are measured."""

    name: str
    """The word for it in tables."""
    networks: nn.Module
    """All its networks, `backbone` among them, in evaluation mode, on the device."""
    backbone: Backbone
    layer: str
    """Layer of the backbone whose features are compared."""
    config: Config
    """The settings of a run that sees images in the same way: size, window, colours."""
    predict: Callable[[Tensor], dict[str, Tensor]] | None
    """Images to the tasks' predictions in the units of a batch's targets; None where no task was learnt."""
    tasks: tuple[Task, ...]
    """The tasks that are predicted."""
    statistics: str
    """Of what images its batch norms have their statistics, in words."""

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

    def reestimated(self, images: Domain, until: str | None = None) -> Subject | None:
        """The same weights, with the statistics of a domain's images in the batch norms: AdaBN.

        Li et al., *Revisiting Batch Normalization For Practical Domain Adaptation*, arXiv 1603.04779: where images
        differ in appearance alone, this is much of what an adaptation can gain, and it needs no label. A mean and an
        unbiased variance are those of all inputs that a batch norm gets, over the images and their positions, of the
        first 4,096 images at most, in their order. Batch after batch it normalises by what it has got so far. Frozen
        layers keep what they have, and so do the networks of this subject: the new ones are a copy.

        Args:
            images: of which only the images are used.
            until: deepest layer of the backbone that is looked at; None = all that predicts.

        Returns:
            None where no batch norm on the way has statistics that may change: the numbers would be the same.
        """
        method = measured_method(self.config)
        method.networks.load_state_dict(self.networks.state_dict())
        method.networks.to(run_device())
        seen = replace(self.sees(images), targets=frozenset())
        everything = method.predict if isinstance(method, Dense) else method.backbone
        forward = everything if until is None else partial(method.backbone, until=until)
        if not reestimate(method.networks, forward, seen):
            return None
        return _subject(f"{self.name}{REESTIMATED}", method, self.config, words_of_reestimation(seen))

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
    step: int
    """Number of the checkpoint's last step."""
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
        training = self.training_domain(method.domains(self.config)[0].name)
        if self.config.model.init == "kraehenbuehl":
            seed, options = self.config.train.seed, loading(self.config)
            initialise_by_first_images(method.backbone, method.networks, training, options, seed=seed)
        _calibrate(method, training)
        return _subject(
            "untrained",
            method,
            self.config,
            f"of up to {_CALIBRATION_BATCHES * _BATCH} {training.name} images of the training",
        )


def statistics_of(subject: Subject, measured: Sequence[Subject]) -> dict[str, str]:
    """Of what images the batch norms have their statistics, in words and by name, and why there is no second column."""
    names = {one.name: one.statistics for one in measured}
    return {"no_" + subject.name + REESTIMATED: _SAME, **names} if subject.name + REESTIMATED not in names else names


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
    subject = _subject(name, trained.method, trained.config, "running ones of the training")
    return RunSubject(**vars(subject), run=trained.run, step=trained.step, fingerprints=trained.fingerprints)


def fresh_subject(config: Config, name: str) -> Subject:
    """The networks of a run with these settings before it began, batch norms as they are built; nothing is read."""
    method = measured_method(config)
    method.networks.to(run_device()).eval()
    return _subject(name, method, config, "as they are built, 0 and 1")


def _subject(name: str, method: Method, config: Config, statistics: str) -> Subject:
    dense = method if isinstance(method, Dense) else None
    has_statistics = any(
        isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats for norm in method.networks.modules()
    )
    return Subject(
        name=name,
        networks=method.networks,
        backbone=method.backbone,
        layer=method.compared_layer,
        config=config,
        predict=None if dense is None else dense.predict,
        tasks=() if dense is None else dense.tasks,
        statistics=statistics if has_statistics else "none, as it has no batch norms with statistics",
    )


def _trained_norms(networks: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms with running statistics, but for those of frozen layers, which keep theirs."""
    networks.train()
    norms = [norm for norm in networks.modules() if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats]
    trained = [norm for norm in norms if norm.training]
    networks.eval()
    return trained


def _calibrate(method: Method, training: Domain) -> None:
    """Give the batch norms the statistics of some batches, but for those of frozen layers, which keep theirs."""
    forward = method.predict if isinstance(method, Dense) else method.backbone
    norms = _trained_norms(method.networks)
    method.networks.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    with torch.no_grad(), every_sample(training) as batches:
        for batch in islice(batches, _CALIBRATION_BATCHES):
            forward(batch.image)
    method.networks.eval()


@torch.no_grad()
def reestimate(networks: nn.Module, forward: Callable[[Tensor], object], images: Domain) -> bool:
    """Give the batch norms that the images meet the statistics of these; whether there was one."""
    moments = {norm: _Moments(norm) for norm in _trained_norms(networks)}
    hooks = [norm.register_forward_pre_hook(moment) for norm, moment in moments.items()]
    with every_sample(images) as batches:
        for batch in islice(batches, _STATISTICS_BATCHES if moments else 0):
            forward(batch.image)
    for hook in hooks:
        hook.remove()
    return any(moment.count for moment in moments.values())


def words_of_reestimation(images: Domain) -> str:
    """Of what images batch norms got their statistics by `reestimate`."""
    return f"re-estimated on {min(len(images.samples), _STATISTICS_BATCHES * _BATCH)} images of {images.name} data"


class _Moments:
    """Moments of a batch norm's inputs over all batches so far, by which it normalises the next one, that one included.

    So the last batch may be a single image, and nothing but batch norms leaves evaluation mode.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.count = 0
        zeros = torch.zeros(norm.num_features, dtype=torch.float64, device=norm.weight.device)
        self._mean, self._squares = zeros, zeros.clone()  # the squares: summed, and of what deviates from the mean

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        """The hook in front of the norm: inputs are (N, C, H, W)."""
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        (x,) = inputs
        variance, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        total = self.count + count
        away = mean - self._mean
        self._squares += count * variance + away.square() * (self.count * count / total)
        self._mean += away * (count / total)
        self.count = total
        norm.running_mean.copy_(self._mean)
        norm.running_var.copy_(self._squares / max(total - 1, 1))


def every_sample(domain: Domain) -> Batches:
    """Every sample of a domain once, through its centre window."""
    return domain.evaluation_batches(loading(domain.config), _BATCH)


def loading(config: Config) -> LoaderOptions:
    """How images are loaded that are measured."""
    return LoaderOptions(device=run_device(), threads=config.train.threads)
