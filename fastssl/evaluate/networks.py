"""The networks that evaluations compare, and the held-out batches they see."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from fastssl.batch import RealBatch, SyntheticBatch
from fastssl.config import Config
from fastssl.loader import (
    LoaderOptions,
    Mixture,
    Plan,
    ViewSettings,
    evaluation_plan,
    open_mixture,
    real_batches,
    synthetic_batches,
)
from fastssl.models import Networks, build_networks
from fastssl.train import load_networks, run_device

_BATCH = 32
_CALIBRATION_BATCHES = 8


def trained_networks(run: Path) -> tuple[Networks, Config]:
    """The trained networks of a run, in evaluation mode on the device, and its settings."""
    networks, config = load_networks(run)
    return networks.to(run_device()), config


def untrained_networks(config: Config) -> Networks:
    """The networks as the run of `config` started, in evaluation mode.

    Their batch norms have the statistics of the training images (first batches of the synthetic dataset): with the
    statistics they are built with, 0 and 1, a deep network's features would be arbitrary, and too easy to beat.
    """
    networks = build_networks(config.model, config.train.seed).to(run_device())
    norms = [part for part in networks.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    norms += [part for part in networks.heads.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    networks.train()
    with torch.no_grad():
        for batch in islice(image_batches(config, open_mixture(config.data.synthetic)), _CALIBRATION_BATCHES):
            networks.heads(networks.backbone(batch.image)["fc7"])
    return networks.eval()


def label_batches(config: Config, shards: Mixture) -> Iterator[SyntheticBatch]:
    """Every sample of a synthetic dataset once, through its centre window."""
    return synthetic_batches(shards, *_plan(config, shards, whole=False))


def image_batches(config: Config, shards: Mixture) -> Iterator[RealBatch]:
    """Every image of any dataset once, as the training would show it but through its centre window."""
    whole = not shards.has_labels and config.data.real_window == "whole"
    return real_batches(shards, *_plan(config, shards, whole=whole))


def _plan(config: Config, shards: Mixture, *, whole: bool) -> tuple[Plan, LoaderOptions]:
    data = config.data
    settings = ViewSettings(data=data, augment=config.augment, stored=shards.image_size, whole=whole)
    plan = evaluation_plan(settings, len(shards), _BATCH)
    return plan, LoaderOptions(device=run_device(), threads=config.train.threads)
