"""Format `torchvision`: a state dict for torchvision's own networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from fastssl.backbones.vgg16 import VGG16
from fastssl.export.exporter import Weights, largest_difference, random_images, write_state
from fastssl.export.published import PUBLISHED, check_published, published_state, vgg_maps
from fastssl.extras import optional_package

_CLASSES = 1000
_STAGES = {"relu": "conv1", "layer1": "conv2", "layer2": "conv3", "layer3": "conv4", "layer4": "conv5"}
"""Nodes of torchvision's ResNet-50, and the layers here."""


class TorchVision:
    """`resnet50`, for `torchvision.models.resnet50()`, and `vgg16`, for `torchvision.models.vgg16_bn().features`.

    All keys are there, so that both load with `strict=True`. The classifier of ResNet-50 is not learnt here: `fc` is
    zeros for 1000 classes and gives 0 until it is replaced or trained. That of VGG16, 124 M parameters, is left out.
    """

    name: ClassVar[str] = "torchvision"

    @staticmethod
    def check(weights: Weights) -> None:
        """Only networks that torchvision has as they are here."""
        check_published(weights, TorchVision.name, PUBLISHED)
        _torchvision()

    @staticmethod
    def write(weights: Weights, file: BinaryIO) -> None:
        """A state dict by `torch.save`."""
        state = published_state(weights)
        if not isinstance(weights.backbone, VGG16):
            channels = weights.backbone.feature_info[weights.backbone.last].channels
            state |= {"fc.weight": torch.zeros(_CLASSES, channels), "fc.bias": torch.zeros(_CLASSES)}
        write_state(state, file)

    @staticmethod
    def verify(weights: Weights, path: Path) -> float:
        """In torchvision's network; its maps are those after a ReLU."""
        image = random_images(weights.config.data.size, weights.config.data.size)
        state = torch.load(path, weights_only=True)
        with torch.device("meta"):  # which spares drawing weights that the file replaces
            is_vgg = isinstance(weights.backbone, VGG16)
            model = _torchvision().vgg16_bn().features if is_vgg else _torchvision().resnet50()
        model.load_state_dict(state, assign=True)
        found = vgg_maps(weights, model.eval(), image) if is_vgg else _stage_maps(model.eval(), image)
        return largest_difference(found, weights.features_after_relu(image))

    @staticmethod
    def usage(weights: Weights, path: Path) -> str:
        part = "vgg16_bn().features" if isinstance(weights.backbone, VGG16) else "resnet50()"
        return f"torchvision.models.{part}.load_state_dict(torch.load({str(path)!r}))"


def _torchvision() -> Any:
    return optional_package("torchvision", where="--format torchvision", hint="pip install torchvision").models


@torch.no_grad()
def _stage_maps(model: Any, image: Tensor) -> dict[str, Tensor]:
    from torchvision.models.feature_extraction import create_feature_extractor

    maps: dict[str, Tensor] = create_feature_extractor(model, _STAGES)(image)
    return maps
