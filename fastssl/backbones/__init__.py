"""Backbones, each in a file of its own. To add one, write the file and add its class to the tuple below."""

from __future__ import annotations

import difflib

from fastssl.backbones.alexnet import AlexNet
from fastssl.backbones.backbone import Backbone, Convolution, LayerInfo, check_sides, scaled_channels
from fastssl.errors import ConfigError

__all__ = [
    "BACKBONES",
    "Backbone",
    "Convolution",
    "LayerInfo",
    "check_sides",
    "find_backbone",
    "scaled_channels",
]

_BACKBONES: tuple[type[Backbone], ...] = (AlexNet,)
BACKBONES = {backbone.name: backbone for backbone in _BACKBONES}
"""Backbones by their names."""


def find_backbone(name: str) -> type[Backbone]:
    """The backbone of a name.

    Raises:
        ConfigError: there is none; the nearest name is offered.
    """
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name, BACKBONES, n=1)
        names = ", ".join(BACKBONES)
        expected = f"{nearest[0]!r}? All names: {names}" if nearest else f"one of: {names}"
        raise ConfigError("there is no such backbone", where="model.backbone", seen=name, expected=expected)
    return BACKBONES[name]
