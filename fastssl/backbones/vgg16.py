"""Backbone `vgg16`: VGG16 with batch norms, up to its last convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones.backbone import (
    Convolution,
    HeadForm,
    LayerInfo,
    SequentialBackbone,
    check_sides,
    patch_convolutions,
    scaled_channels,
)
from fastssl.config import BackboneSettings

# Channels and number of 3 x 3 convolutions of each stage; a max pooling of stride 2 stands in front of all but conv1.
_STAGES = {"conv1": (64, 2), "conv2": (128, 2), "conv3": (256, 3), "conv4": (512, 3), "conv5": (512, 3)}
_STRIDES = {name: 2**number for number, name in enumerate(_STAGES)}


class VGG16(SequentialBackbone):
    """B, from an image to the maps of the five stages, each taken before its pooling.

    Source: the authors' second network (docs/reproduction.md, section 3.9), which is configuration D of Simonyan &
    Zisserman, *Very Deep Convolutional Networks*, ICLR 2015, with a batch norm behind every convolution and without its
    fully connected layers. 14.7 M parameters.
    """

    name: ClassVar[str] = "vgg16"
    last: ClassVar[str] = "conv5"
    compared: ClassVar[str] = "conv5"
    heads: ClassVar[HeadForm] = "skip"
    discriminators: ClassVar[Mapping[str, tuple[Convolution, ...]]] = {
        **{name: patch_convolutions(_STAGES[name][0], _STRIDES[name]) for name in ("conv1", "conv2", "conv3")},
        # The authors'; each ends in 6 x 6 decisions at 224 pixels.
        "conv4": (Convolution(1024, 4, 2), Convolution(1024, 2, 2)),
        "conv5": (Convolution(1024, 4, 2), Convolution(1024, 1, 1)),
    }

    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__(settings, post_relu=post_relu)
        self.feature_info = {}
        self.layers = nn.ModuleDict()
        inputs = 3
        for name, (channels, convolutions) in _STAGES.items():
            outputs = scaled_channels(channels, settings.width)
            self.feature_info[name] = LayerInfo(outputs, _STRIDES[name])
            modules: list[nn.Module] = []
            for _ in range(convolutions):
                modules += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            self.layers[name] = nn.Sequential(*modules[:-1])  # the last ReLU is the forward pass's

    def layer_map(self, layer: str, below: Tensor) -> Tensor:
        """A stage's map before its last ReLU and its pooling: with the side of the image at conv1, half of it at conv2,
        and so on."""
        x = below if _STRIDES[layer] == 1 else F.max_pool2d(below, 2)
        found: Tensor = self.layers[layer](x)
        return found

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Sides are multiples of 16, so that the heads meet each map at its size.

        Raises:
            ConfigError: another size; the nearest ones are named.
        """
        check_sides(height, width, step=16, least=32)
