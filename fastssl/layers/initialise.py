"""Initialisation of networks."""

from __future__ import annotations

import torch
from torch import nn


def xavier_initialise(networks: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Xavier normal convolutions without bias, batch norms near the identity (docs/reproduction.md, section 3.7)."""
    for module in networks.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_normal_(module.weight, gain, generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, generator)
        else:
            continue
        assert module.bias is not None
        nn.init.zeros_(module.bias)
