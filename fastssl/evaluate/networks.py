"""The networks that evaluations compare, and the held-out batches they see."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from fastssl.batch import RealBatch, SyntheticBatch
from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.loader import (
    LoaderOptions,
    Mixture,
    Plan,
    ViewSettings,
    evaluation_plan,
    open_domain,
    real_batches,
    synthetic_batches,
)
from fastssl.models import Networks, build_networks
from fastssl.shards import Domain
from fastssl.train import check_data, load_trained, run_device

log = logging.getLogger(__name__)

_BATCH = 32
_CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Trained:
    """A run that is measured."""

    run: Path
    networks: Networks
    """In evaluation mode, on the device."""
    config: Config
    fingerprints: Mapping[str, str]
    """Fingerprint of the datasets of each domain that it was trained on; empty for one that it did not read."""

    def data(self, domain: Domain) -> Mixture:
        """The datasets that the run was trained on, on which an evaluation fits what it compares with.

        Raises:
            DataError: they are gone, damaged, or no longer those that the run was trained on.
        """
        weights: Mapping[str, float] = getattr(self.config.data, domain)
        try:
            mixture = open_domain(weights, domain)
        except DataError as error:
            raise DataError(
                f"the training data of the run {self.run} cannot be used: {error.what}",
                where=error.where,
                seen=error.seen,
                expected=error.expected,
                do="put them back where the run found them, the evaluation compares with them",
            ) from error
        if self.fingerprints[domain]:
            now: dict[str, str] = {domain: mixture.fingerprint}
            check_data(self.fingerprints, now, self.config, DataError)
        else:
            log.warning("the run %s read no %s data; the evaluation takes %s as it is", self.run, domain, mixture.path)
        return mixture


def trained_networks(run: Path) -> Trained:
    """The trained networks of a run and what is known of it.

    Raises:
        DataError: the folder is no run, or has no sound checkpoint.
    """
    networks, config, fingerprints = load_trained(run)
    return Trained(run, networks.to(run_device()), config, fingerprints)


def untrained_networks(config: Config, shards: Mixture) -> Networks:
    """The networks as the run of `config` started, in evaluation mode.

    Their batch norms have the statistics of the training images (first batches of the synthetic dataset): with the
    statistics they are built with, 0 and 1, a deep network's features would be arbitrary, and too easy to beat.

    Args:
        config: of the run.
        shards: the synthetic dataset that it was trained on.
    """
    networks = build_networks(config.model, config.train.seed).to(run_device())
    norms = [part for part in networks.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    norms += [part for part in networks.heads.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    networks.train()
    with torch.no_grad():
        for batch in islice(image_batches(config, shards), _CALIBRATION_BATCHES):
            networks.heads(networks.backbone(batch.image)["fc7"])
    return networks.eval()


def label_batches(config: Config, shards: Mixture) -> Iterator[SyntheticBatch]:
    """Every sample of a synthetic dataset once, through its centre window.

    Raises:
        DataError: the packed images are smaller than the network's input, as training refuses them too.
    """
    return synthetic_batches(shards, *_plan(config, shards, whole=False))


def image_batches(config: Config, shards: Mixture) -> Iterator[RealBatch]:
    """Every image of any dataset once, as the training would show it but through its centre window.

    Raises:
        DataError: as `label_batches`.
    """
    whole = not shards.has_labels and config.data.real_window == "whole"
    return real_batches(shards, *_plan(config, shards, whole=whole))


def _plan(config: Config, shards: Mixture, *, whole: bool) -> tuple[Plan, LoaderOptions]:
    data = config.data
    if min(shards.image_size) < data.size:
        raise DataError(
            "the packed images are smaller than the network's input",
            where=shards.path,
            seen=f"{shards.image_size[0]} x {shards.image_size[1]} pixels",
            expected=f"at least data.size = {data.size}",
            do="pack them larger",
        )
    settings = ViewSettings(data=data, augment=config.augment, stored=shards.image_size, whole=whole)
    plan = evaluation_plan(settings, len(shards), _BATCH)
    return plan, LoaderOptions(device=run_device(), threads=config.train.threads)
