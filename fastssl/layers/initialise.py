"""Initialisation of networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastssl.backbones import Backbone, DrawsWeights

_POWER_ITERATIONS = 15
"""Before the first step, as torch's spectral norm makes when it is built."""


def xavier_initialise(networks: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Xavier normal convolutions without bias, norms near the identity (docs/reproduction.md, section 3.7).

    A backbone that draws its own weights (`DrawsWeights`) does so, from the same generator. Where weights have a
    spectral norm, those that it divides are drawn, and the vectors of its power iteration.
    """
    own = [module for module in networks.modules() if isinstance(module, Backbone) and isinstance(module, DrawsWeights)]
    drawn = {module for backbone in own for module in backbone.modules()}
    for backbone in own:
        backbone.draw_weights(generator)
    norms = (nn.BatchNorm2d, nn.InstanceNorm2d)
    for module in networks.modules():
        if module in drawn or not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, *norms)):
            continue
        if isinstance(module, norms):
            nn.init.normal_(module.weight, 1.0, 0.02, generator)
        elif is_parametrized(module, "weight"):
            _draw_normalised(module, gain, generator)
        else:
            nn.init.xavier_normal_(module.weight, gain, generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _draw_normalised(module: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Draw weights that have a spectral norm, and its vectors, brought near the first singular ones."""
    nn.init.xavier_normal_(module.get_parameter("parametrizations.weight.original"), gain, generator)
    with torch.no_grad():
        for vector in module.get_submodule("parametrizations.weight").buffers():
            vector.copy_(F.normalize(vector.normal_(generator=generator), dim=0))
        for _ in range(_POWER_ITERATIONS):
            assert module.weight is not None  # to read it in training mode makes an iteration
