"""Backbones, each in a file of its own. To add one, write the file and add its class to the tuple below."""

from __future__ import annotations

import difflib

from fastssl.backbones.alexnet import AlexNet
from fastssl.backbones.backbone import (
    Backbone,
    Convolution,
    DrawsWeights,
    HeadForm,
    LayerInfo,
    SequentialBackbone,
    check_sides,
    patch_convolutions,
    scaled_channels,
)
from fastssl.backbones.centres import first_centres
from fastssl.backbones.resnet50 import ResNet50
from fastssl.backbones.timm_model import PREFIX, TimmModel, timm_backbone
from fastssl.backbones.vgg16 import VGG16
from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError

__all__ = [
    "BACKBONES",
    "Backbone",
    "Convolution",
    "DrawsWeights",
    "HeadForm",
    "LayerInfo",
    "SequentialBackbone",
    "TimmModel",
    "build_backbone",
    "check_sides",
    "find_backbone",
    "first_centres",
    "patch_convolutions",
    "scaled_channels",
]

_BACKBONES: tuple[type[Backbone], ...] = (AlexNet, VGG16, ResNet50)
BACKBONES = {backbone.name: backbone for backbone in _BACKBONES}
"""Backbones by their names, beside those of timm."""


def find_backbone(name: str) -> type[Backbone]:
    """The backbone of a name; `timm:NAME` is timm's model of that name.

    Raises:
        ConfigError: there is none; the nearest name is offered.
        UsageError: it is a model of timm, which is not installed.
    """
    if name.startswith(PREFIX):
        return timm_backbone(name)
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name, BACKBONES, n=1)
        names = ", ".join((*BACKBONES, f"{PREFIX}NAME"))
        expected = f"{nearest[0]!r}? All names: {names}" if nearest else f"one of: {names}"
        raise ConfigError("there is no such backbone", where="model.backbone", seen=name, expected=expected)
    return BACKBONES[name]


def build_backbone(settings: BackboneSettings, *, post_relu: bool = False) -> Backbone:
    """The backbone that the settings name, its frozen layers frozen.

    Raises:
        ConfigError: no such backbone, or no such layer.
    """
    backbone = find_backbone(settings.backbone)(settings, post_relu=post_relu)
    if settings.frozen != "none":
        backbone.freeze(settings.frozen)
    return backbone
