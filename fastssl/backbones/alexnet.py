"""Backbone `alexnet`: AlexNet without groups, with batch norms, its two last layers as convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones.backbone import (
    Convolution,
    HeadForm,
    LayerInfo,
    SequentialBackbone,
    check_sides,
    scaled_channels,
)
from fastssl.config import BackboneSettings
from fastssl.few_channels import FewInputsConv2d


class _Shape(NamedTuple):
    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def convolution(self, inputs: int, outputs: int) -> nn.Conv2d:
        if self.stride > 1:  # the one that reads the image
            return FewInputsConv2d(inputs, outputs, self.kernel, stride=self.stride, padding=self.padding)
        return nn.Conv2d(inputs, outputs, self.kernel, padding=self.padding, dilation=self.dilation)


_LAYERS = {
    "conv1": _Shape(96, kernel=11, stride=4, padding=2),
    "conv2": _Shape(256, kernel=5, padding=2),
    "conv3": _Shape(384, kernel=3, padding=1),
    "conv4": _Shape(384, kernel=3, padding=1),
    "conv5": _Shape(256, kernel=3, padding=1),
    # With the stride-1 pooling before it, the a-trous form of CaffeNet's 6 x 6 layer: the weights reshape to its fc6.
    "fc6": _Shape(4096, kernel=6, padding=5, dilation=2),
    "fc7": _Shape(4096, kernel=1),
}
# Max pooling, 3 x 3, in front of these layers: (stride, padding).
_POOLED = {"conv2": (2, 0), "conv3": (2, 0), "fc6": (1, 1)}

# Channels, kernel and stride. The authors' patch discriminators (docs/reproduction.md, section 3.5): each ends in 6 x 6
# decisions at 227 pixels.
_DISCRIMINATORS = {
    "conv1": ((192, 3, 2), (384, 3, 2), (512, 3, 2)),
    "conv2": ((512, 3, 2), (640, 3, 2)),
    "conv3": ((512, 3, 2), (512, 1, 1)),
    "conv4": ((512, 3, 2), (512, 1, 1)),
    "conv5": ((512, 3, 2), (512, 1, 1)),
    "fc6": ((512, 3, 2), (256, 1, 1)),
}


class AlexNet(SequentialBackbone):
    """B, from an image to the features of every layer.

    Source: the authors' AlexNet (docs/reproduction.md, section 3.3). The tests hold its shapes and its 58.3 M
    parameters.
    """

    name: ClassVar[str] = "alexnet"
    last: ClassVar[str] = "fc7"
    compared: ClassVar[str] = "conv5"
    heads: ClassVar[HeadForm] = "transposed"
    discriminators: ClassVar[Mapping[str, tuple[Convolution, ...]]] = {
        layer: tuple(Convolution(*shape) for shape in shapes) for layer, shapes in _DISCRIMINATORS.items()
    }

    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__(settings, post_relu=post_relu)
        self.feature_info = _feature_info(settings)
        self.layers = nn.ModuleDict()
        inputs = 3
        for name, shape in _LAYERS.items():
            outputs = self.feature_info[name].channels
            self.layers[name] = nn.Sequential(
                OrderedDict(conv=shape.convolution(inputs, outputs), norm=nn.BatchNorm2d(outputs))
            )
            inputs = outputs

    def layer_map(self, layer: str, below: Tensor) -> Tensor:
        """A layer's map before its ReLU and its pooling; the side is 1 / 4 of the image's at conv1, 1 / 8 at conv2 and
        1 / 16 below (56, 27 and 13 at 227 pixels)."""
        if layer in _POOLED:
            stride, padding = _POOLED[layer]
            below = F.max_pool2d(below, 3, stride, padding)
        found: Tensor = self.layers[layer](below)
        return found

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Sides are of the form 16 k + 3, so that the heads give one output per input pixel.

        Raises:
            ConfigError: another size; the nearest ones are named.
        """
        check_sides(height, width, step=16, rest=3, least=35)


def _feature_info(settings: BackboneSettings) -> dict[str, LayerInfo]:
    info, stride = {}, 1
    for name, shape in _LAYERS.items():
        stride *= shape.stride * (_POOLED[name][0] if name in _POOLED else 1)
        is_fc = name.startswith("fc")
        channels = settings.fc_channels if is_fc else scaled_channels(shape.channels, settings.width)
        info[name] = LayerInfo(channels, stride)
    return info
