"""Weights to export, as a training might leave them."""

from __future__ import annotations

import torch
from torch import nn

from fastssl.backbones import build_backbone
from fastssl.config import BackboneSettings, Config, DataConfig
from fastssl.export import Weights


def made_weights(
    name: str, *, width: float = 0.1, post_relu: bool = False, layer: str | None = None, size: int | None = None
) -> Weights:
    """A backbone whose batch norms have statistics and factors of their own, at its smallest size from 64 on."""
    settings = BackboneSettings(backbone=name, width=width, fc_channels=24, init_gain=1.0)
    torch.manual_seed(0)
    backbone = build_backbone(settings, post_relu=post_relu)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    config = Config(method="cross_domain", model=settings, data=DataConfig(size=size or backbone.small_side()))
    return Weights(backbone=backbone.eval(), config=config, step=7, compared_layer=backbone.compared, layer=layer)
