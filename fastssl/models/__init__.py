"""The networks: backbone B, task heads H and domain discriminator D."""

from __future__ import annotations

import torch
from torch import nn

from fastssl.config import ModelConfig
from fastssl.models.backbone import Backbone
from fastssl.models.discriminator import Discriminator
from fastssl.models.heads import Heads

__all__ = ["Backbone", "Discriminator", "Heads", "Networks", "build_networks"]


class Networks(nn.Module):
    """B, H and D side by side, to be moved, saved and switched between modes together. It has no forward pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.heads = Heads(config)
        self.discriminator = None if config.adapted_layer == "none" else Discriminator(config)

    def parts(self) -> dict[str, nn.Module]:
        """The networks that there are, by name: `backbone`, `heads` and, if a layer is adapted, `discriminator`."""
        return dict(self.named_children())


def build_networks(config: ModelConfig, seed: int) -> Networks:
    """Networks on the CPU, freshly initialised from `seed` alone; torch's global generator stays as it was.

    B and H are the same for every `adapted_layer`, so that runs that differ in it start alike.
    """
    with torch.random.fork_rng(devices=[]):  # torch's modules draw a default initialisation, which is overwritten
        networks = Networks(config)
    _initialise(networks, config.init_gain, torch.Generator().manual_seed(seed))
    return networks


def _initialise(networks: Networks, gain: float, generator: torch.Generator) -> None:
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
