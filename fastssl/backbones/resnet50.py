"""Backbone `resnet50`: ResNet-50 without its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones.backbone import (
    Convolution,
    LayerInfo,
    SequentialBackbone,
    check_sides,
    patch_convolutions,
    scaled_channels,
)
from fastssl.config import BackboneSettings

_STEM = 64
# Channels inside a block, of which it gives four times as many, and the number of blocks.
_STAGES = {"conv2": (64, 3), "conv3": (128, 4), "conv4": (256, 6), "conv5": (512, 3)}
_EXPANSION = 4
_INFO = {"conv1": LayerInfo(_STEM, 2)} | {
    name: LayerInfo(_EXPANSION * channels, 4 * 2**number)
    for number, (name, (channels, _)) in enumerate(_STAGES.items())
}


class ResNet50(SequentialBackbone):
    """B, from an image to the maps of the stem and the four stages.

    Source: He et al., *Deep Residual Learning*, CVPR 2016, whose names the layers have: conv1, and conv2 to conv5 for
    conv2_x to conv5_x. As in torchvision and most others since, the 3 x 3 convolution of a stage's first block has the
    stride. Parameters are named as torchvision's are (conv2 to conv5 are its layer1 to layer4). 23.5 M parameters.
    """

    name: ClassVar[str] = "resnet50"
    last: ClassVar[str] = "conv5"
    compared: ClassVar[str] = "conv5"
    discriminators: ClassVar[Mapping[str, tuple[Convolution, ...]]] = {
        name: patch_convolutions(*info) for name, info in _INFO.items()
    }

    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__(settings, post_relu=post_relu)
        inputs = scaled_channels(_STEM, settings.width)
        self.feature_info = {"conv1": LayerInfo(inputs, _INFO["conv1"].stride)}
        self.conv1 = nn.Conv2d(3, inputs, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        for number, (name, (channels, blocks)) in enumerate(_STAGES.items(), start=1):
            hidden = scaled_channels(channels, settings.width)
            outputs = _EXPANSION * hidden
            stage = [_Bottleneck(inputs, hidden, stride=1 if number == 1 else 2)]
            stage += [_Bottleneck(outputs, hidden) for _ in range(1, blocks)]
            self.add_module(f"layer{number}", nn.ModuleList(stage))
            self.feature_info[name] = LayerInfo(outputs, _INFO[name].stride)
            inputs = outputs

    def layer_map(self, layer: str, below: Tensor) -> Tensor:
        """A stage's map before its last ReLU; its side is the image's / 2 (conv1) to / 32 (conv5), rounded up."""
        number = list(self.feature_info).index(layer)
        if number == 0:
            stem: Tensor = self.bn1(self.conv1(below))
            return stem
        x: Tensor = F.max_pool2d(below, 3, stride=2, padding=1) if number == 1 else below
        first, *others = self.get_submodule(f"layer{number}").children()
        x = first(x)
        for block in others:
            x = block(F.relu(x))
        return x

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Any size of which conv5 has a position.

        Raises:
            ConfigError: a smaller one; the least is named.
        """
        check_sides(height, width, least=32)


class _Bottleneck(nn.Module):
    """A block, up to the sum before its last ReLU, which the caller applies."""

    def __init__(self, inputs: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        outputs = _EXPANSION * hidden
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        total: Tensor = self.bn3(self.conv3(y)) + self.downsample(x)
        return total
