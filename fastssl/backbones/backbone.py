"""The interface of a backbone: all that the rest of the program knows of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError


class LayerInfo(NamedTuple):
    """The map that a layer gives."""

    channels: int
    stride: int
    """Pixels of the image from one position of the map to the next."""


class Convolution(NamedTuple):
    """A convolution and the norm and activation that follow it."""

    channels: int
    kernel: int
    stride: int


class Backbone(nn.Module):
    """A network whose layers have names, from an image to features.

    Args:
        settings: its size.
        post_relu: layers give their maps after the ReLU; the last layer always does.
    """

    name: ClassVar[str]
    last: ClassVar[str]
    """The deepest layer, from which heads predict."""
    compared: ClassVar[str]
    """The layer that evaluations look at where nothing names another."""
    discriminators: ClassVar[Mapping[str, tuple[Convolution, ...]]]
    """Convolutions, but the last, of a discriminator of patches of the map, for each layer that can be adapted."""
    feature_info: dict[str, LayerInfo]
    """The map of every layer, by name, in the order of computation."""

    @abstractmethod
    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """Features of every layer up to and including `until` (None: all).

        Args:
            image: (N, 3, H, W) floats of any precision.
            until: name of the deepest layer that is computed.

        Returns:
            By layer, in the order of computation, (N, C, h, w).
        """

    @classmethod
    @abstractmethod
    def check_size(cls, height: int, width: int) -> None:
        """Refuse images of a size that the backbone cannot take, naming the nearest that it can.

        Raises:
            ConfigError: see above.
        """

    @classmethod
    def patch_discriminator(cls, layer: str) -> tuple[Convolution, ...]:
        """The convolutions that `discriminators` has for a layer.

        Raises:
            ConfigError: there are none for this layer.
        """
        if layer not in cls.discriminators:
            raise ConfigError(
                "the backbone has no discriminator for this layer",
                where="model.adapted_layer",
                seen=layer,
                expected=", ".join(("none", *cls.discriminators)),
            )
        return cls.discriminators[layer]

    def as_weights(self, image: Tensor) -> Tensor:
        """The image in the precision and memory layout of the first weights; batches may be half floats."""
        weight = next(parameter for parameter in self.parameters() if parameter.dim() == image.dim())
        # Of convolutions over one of each all layouts are alike to torch, which then takes that of the image.
        layout = (
            torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        return image.to(weight.dtype, memory_format=layout)

    def check_layer(self, layer: str) -> None:
        """Refuse a layer that the backbone does not have.

        Raises:
            ConfigError: see above.
        """
        if layer not in self.feature_info:
            raise ConfigError("the backbone has no such layer", seen=layer, expected=", ".join(self.feature_info))


def check_sides(height: int, width: int, *, step: int, rest: int, least: int) -> None:
    """Refuse an image with a side that is not of the form `step` k + `rest`, or that is below `least`.

    Raises:
        ConfigError: see above; the nearest sides are named.
    """
    for side in (height, width):
        if side % step != rest or side < least:
            lower = max((side - rest) // step * step + rest, least)
            raise ConfigError(
                "the image's size does not fit the network",
                where="data.size",
                seen=f"{height} x {width}",
                expected=f"sides of the form {step} k + {rest}, at least {least}",
                hint=f"set data.size to {lower} or {lower + step}, the nearest",
            )


def scaled_channels(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8 and at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)
