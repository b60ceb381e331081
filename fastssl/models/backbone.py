"""Backbone B: AlexNet without groups, with batch norms, its two last layers as convolutions."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.config import ModelConfig
from fastssl.errors import ConfigError


class _Shape(NamedTuple):
    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


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


def scaled_channels(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8 and at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)


def layer_channels(config: ModelConfig) -> dict[str, int]:
    """Channels of every layer's map, from conv1 to fc7."""
    return {
        name: config.fc_channels if name.startswith("fc") else scaled_channels(shape.channels, config.width)
        for name, shape in _LAYERS.items()
    }


class Backbone(nn.Module):
    """B, from an image to the features of every layer.

    Source: the authors' AlexNet (docs/reproduction.md, section 3.3). The tests hold its shapes and its 58.3 M
    parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.channels = layer_channels(config)
        """Channels of every layer's map, by name, in the order of computation."""
        self._returns_post_relu = config.adapted_feature == "post_relu"
        self.layers = nn.ModuleDict()
        inputs = 3
        for name, shape in _LAYERS.items():
            outputs = self.channels[name]
            convolution = nn.Conv2d(
                inputs, outputs, shape.kernel, stride=shape.stride, padding=shape.padding, dilation=shape.dilation
            )
            self.layers[name] = nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(outputs)))
            inputs = outputs

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """Features of every layer up to and including `until` (None: all).

        Args:
            image: (N, 3, H, W) floats of any precision; H and W of the form 16 k + 3, at least 35.
            until: name of the deepest layer that is computed.

        Returns:
            By layer, in the order conv1 to conv5, fc6, fc7, the map before its pooling: (N, C, h, w), h = W / 4 at
            conv1, / 8 at conv2 and / 16 below (56, 27 and 13 at 227 pixels). Before the ReLU, or after it where
            `adapted_feature` says so; fc7, which the heads read, is always after it.

        Raises:
            ConfigError: an image of another size, or no such layer.
        """
        self._check(image, until)
        features: dict[str, Tensor] = {}
        x = image.to(self.get_parameter("layers.conv1.conv.weight").dtype)  # batches on a GPU are half floats
        for name, layer in self.layers.items():
            if name in _POOLED:
                stride, padding = _POOLED[name]
                x = F.max_pool2d(x, 3, stride, padding)
            normed = layer(x)
            after = self._returns_post_relu or name == "fc7"
            x = F.relu(normed, inplace=after)  # in place only where nobody gets to see the map before it
            features[name] = x if after else normed
            if name == until:
                break
        return features

    def _check(self, image: Tensor, until: str | None) -> None:
        height, width = image.shape[-2:]
        if height % 16 != 3 or width % 16 != 3 or min(height, width) < 35:
            raise ConfigError(
                "the image's size does not fit the network",
                where="data.size",
                seen=f"{height} x {width}",
                expected="sides of the form 16 k + 3, at least 35 (such as 99 or 227)",
                do="set data.size to such a number",
            )
        if until is not None and until not in self.channels:
            raise ConfigError("the backbone has no such layer", seen=until, expected=", ".join(self.channels))
