"""Networks here that torchvision and timm have too, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastssl.backbones.resnet50 import ResNet50
from fastssl.backbones.vgg16 import VGG16
from fastssl.errors import UsageError
from fastssl.export.exporter import Weights, plain_copy, refuse_layer

PUBLISHED = (ResNet50.name, VGG16.name)
"""Backbones whose structure is theirs."""


def check_published(weights: Weights, exporter: str, taken: Sequence[str]) -> None:
    """Refuse a backbone that is not among those taken, or not as wide as it was published.

    Raises:
        UsageError: see above, or a layer was named.
    """
    refuse_layer(weights, exporter)
    name, width = weights.backbone.name, weights.config.model.width
    if name not in taken:
        raise UsageError(
            f"{exporter} has no network that is the backbone {name} here",
            where="--format",
            seen=exporter,
            expected=f"a run with model.backbone one of: {', '.join(taken)}",
            hint="take --format safetensors or onnx, which take every backbone",
        )
    if name in PUBLISHED and width != 1:
        raise UsageError(
            f"{exporter} has {name} in its published width alone",
            where="model.width",
            seen=width,
            expected=1.0,
            hint="take --format safetensors or onnx, which take every width",
        )


def published_state(weights: Weights) -> dict[str, Tensor]:
    """The tensors of `resnet50` by their names in both libraries; of `vgg16` by those in `vgg16_bn().features`."""
    if not isinstance(weights.backbone, VGG16):
        return weights.state()  # of the same names
    return {
        f"{place}.{name}": plain_copy(value)
        for place, module in _vgg_places(weights.backbone).items()
        for name, value in module.state_dict().items()
    }


@torch.no_grad()
def vgg_maps(weights: Weights, features: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The maps in front of the poolings of a `vgg16_bn().features`, by the names of the layers here."""
    maps, image = [], image.clone()
    for module in features.children():
        if isinstance(module, nn.MaxPool2d):
            maps.append(image)
        image = module(image)
    return dict(zip(weights.backbone.feature_info, maps, strict=True))


def _vgg_places(backbone: VGG16) -> dict[int, nn.Module]:
    """Modules by their numbers in one sequence, in which each stage ends in its last ReLU and a pooling."""
    places: dict[int, nn.Module] = {}
    first = 0
    for stage in backbone.layers.values():
        modules = list(stage.children())
        places |= dict(enumerate(modules, start=first))
        first += len(modules) + 2
    return places
