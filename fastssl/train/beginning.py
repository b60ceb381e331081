"""What a run begins with: networks drawn from its seed or by its first images, or those of another run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from fastssl.backbones import Backbone
from fastssl.config import Config
from fastssl.layers import initialise_by_data
from fastssl.loader import Domain, LoaderOptions, load_batches
from fastssl.methods import Constrained, Method, StepContext, find_method
from fastssl.ranks import Ranks
from fastssl.train.checkpoint import begin_with

_BATCH, _BATCHES = 16, 10


def begun_method(
    config: Config, context: StepContext, domains: Mapping[str, Domain], options: LoaderOptions, *, resumed: bool
) -> Method:
    """The method of a run as it stands before the first step.

    Args:
        config: the run's settings.
        context: that of its steps.
        domains: those that the method reads; `model.init=kraehenbuehl` looks at images of the first.
        options: how they are loaded.
        resumed: a checkpoint takes the place of what it begins with, which is left out.

    Raises:
        ConfigError, DataError: as `begin_with` and `initialise_by_first_images`.
    """
    method = find_method(config.method)(config, context)
    if resumed:
        return method
    if config.train.init_from:
        begin_with(method, Path(config.train.init_from))
    if config.model.init == "kraehenbuehl":
        images = next(iter(domains.values()))
        seed, ranks = config.train.seed, context.ranks
        initialise_by_first_images(method.backbone, method.networks, images, options, seed=seed, ranks=ranks)
    return method


def initialise_by_first_images(
    backbone: Backbone,
    networks: nn.Module,
    images: Domain,
    options: LoaderOptions,
    *,
    seed: int,
    ranks: Ranks | None = None,
) -> None:
    """Give a backbone the weights of `fastssl.layers.initialise_by_data`, in place.

    Args:
        backbone: on the device of the options.
        networks: the method's; what form they hold weights to counts (`fastssl.methods.Constrained`).
        images: of which the first 160 are taken, 10 batches of 16, as a training of one rank sees them.
        options: how they are loaded.
        seed: of the weights.
        ranks: get the same weights, each by the same images.

    Raises:
        ConfigError, DataError: as `initialise_by_data`; ShardError, MachineError: the images cannot be read.
    """
    plan = images.plan(batch_size=_BATCH)
    with load_batches(images.samples, plan, options, frozenset()) as batches:
        # Copies: the loader may use a batch's memory again.
        seen = [batch.image.float().clone() for batch in islice(batches, _BATCHES)]
    constraint = networks.constrained if isinstance(networks, Constrained) else None
    initialise_by_data(backbone, seen, torch.Generator().manual_seed(seed), constraint=constraint)
    if ranks is not None:  # kernels of a GPU may add up in another order on each
        ranks.average(value for value in backbone.state_dict().values() if value.is_floating_point())
