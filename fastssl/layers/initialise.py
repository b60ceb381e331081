"""Initialisation of networks."""

from __future__ import annotations

import torch
from torch import nn

from fastssl.backbones import Backbone, DrawsWeights


def xavier_initialise(networks: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Xavier normal convolutions without bias, batch norms near the identity (docs/reproduction.md, section 3.7).

    A backbone that draws its own weights (`DrawsWeights`) does so, from the same generator.
    """
    own = [module for module in networks.modules() if isinstance(module, Backbone) and isinstance(module, DrawsWeights)]
    drawn = {module for backbone in own for module in backbone.modules()}
    for backbone in own:
        backbone.draw_weights(generator)
    for module in networks.modules():
        if module in drawn or not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            continue
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, generator)
        else:
            nn.init.xavier_normal_(module.weight, gain, generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
