"""The interface of a backbone: all that the rest of the program knows of one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from itertools import count
from typing import ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError, UsageError

HeadForm = Literal["transposed", "skip", "pyramid", "light"]
"""Forms of the heads that predict planes, each a class of `fastssl.layers.heads`."""


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
    padding: int = 0


class Backbone(nn.Module):
    """A network whose layers have names, from an image to features.

    Args:
        settings: its size.
        post_relu: layers give their maps after the ReLU; the last layer always does. A backbone without `has_relu`
            gives the same maps either way.
    """

    name: ClassVar[str]
    last: ClassVar[str]
    """The deepest layer, from which heads predict."""
    compared: ClassVar[str]
    """The layer that evaluations look at where nothing names another."""
    discriminators: ClassVar[Mapping[str, tuple[Convolution, ...]]]
    """Convolutions, but the last, of a discriminator of patches of the map, for each layer that can be adapted."""
    heads: ClassVar[HeadForm] = "pyramid"
    """The form of its heads, where the settings ask for no other; `pyramid` and `light` fit every backbone."""
    has_relu: ClassVar[bool] = False
    """Layers end in a ReLU, and give their maps before or after it; if not, a map has one form, whatever ends it."""
    feature_info: dict[str, LayerInfo]
    """The map of every layer, by name, in the order of computation."""
    post_relu: bool
    """The argument it was made with."""

    @abstractmethod
    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__()
        self.post_relu = post_relu
        self._frozen: tuple[nn.Module, ...] = ()

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
        weight = self._first_weights(image.dim())
        return image.to(weight.dtype, memory_format=_layout(weight))

    def _first_weights(self, dim: int) -> Tensor:
        weights = next((parameter for parameter in self.parameters() if parameter.dim() == dim), None)
        if weights is None:
            raise UsageError("images are no batch", seen=f"{dim} dimensions", expected="(N, 3, height, width)")
        return weights

    def check_layer(self, layer: str) -> None:
        """Refuse a layer that the backbone does not have.

        Raises:
            ConfigError: see above.
        """
        if layer not in self.feature_info:
            raise ConfigError("the backbone has no such layer", seen=layer, expected=", ".join(self.feature_info))

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not frozen, which an optimizer is to get."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def modules_above(self, layer: str) -> list[nn.Module]:
        """The outermost modules that a pass enters, with parameters, but none that a layer's map depends on."""
        below, (_, entered) = set(self._used_for(layer)[0]), self._used_for(self.last)
        found, inside = list[nn.Module](), set[nn.Module]()
        for module in entered:  # outer ones first
            own = set(module.parameters())
            if own and not own & below and module not in inside:
                found.append(module)
                inside.update(module.modules())
        return found

    def freeze(self, layer: str) -> None:
        """Keep a layer and all that its map depends on as they are, whatever is trained from now on.

        Their parameters want no gradient, and optimizers are not to get them; their modules stay in evaluation mode,
        so that batch norms use and keep the statistics that they have.

        Raises:
            ConfigError: no such layer.
        """
        if layer not in self.feature_info:
            raise ConfigError(
                "the backbone has no such layer",
                where="model.frozen",
                seen=layer,
                expected=", ".join(("none", *self.feature_info)),
            )
        parameters, entered = self._used_for(layer)
        for parameter in parameters:
            parameter.requires_grad_(False)
        # One that goes deeper than the layer, as the whole of another library's network does, is no part of it.
        self._frozen = tuple(module for module in entered if not any(p.requires_grad for p in module.parameters()))
        self.train(self.training)

    def _used_for(self, layer: str) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """The parameters that a layer's map depends on, and the modules that are entered, by a pass without content."""
        entered: dict[nn.Module, None] = {}
        hooks = [
            module.register_forward_pre_hook(lambda module, _: entered.setdefault(module))
            for module in self.modules()
            if module is not self
        ]
        side = self.small_side()
        # Copies without content, beside which buffers that a pass changes stay as they are.
        empty = {name: torch.empty_like(x, device="meta") for name, x in self.named_buffers()}
        weights = {name: nn.Parameter(torch.empty_like(x, device="meta")) for name, x in self.named_parameters()}
        try:
            with torch.enable_grad():
                image = torch.empty(2, 3, side, side, device="meta")
                features: Tensor = functional_call(self, weights | empty, (image, layer))[layer]
                gradients = torch.autograd.grad(features.sum(), list(weights.values()), allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        found = zip(self.named_parameters(), gradients, strict=True)
        return [parameter for (_, parameter), gradient in found if gradient is not None], list(entered)

    @classmethod
    def small_side(cls) -> int:
        """The least side from 64 pixels on that square images may have."""
        return next(side for side in count(64) if cls.takes(side, side))

    @classmethod
    def takes(cls, height: int, width: int) -> bool:
        """Images of this size fit."""
        try:
            cls.check_size(height, width)
        except ConfigError:
            return False
        return True

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, in which frozen layers stay."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self


class SequentialBackbone(Backbone):
    """A backbone of layers one after the other, each of which ends in a ReLU; one says what a layer is."""

    has_relu: ClassVar[bool] = True

    def as_weights(self, image: Tensor) -> Tensor:
        """The image in the precision and memory layout of the first weights; half floats stay so in mixed precision.

        That casts them for the first layer, a convolution, which gets the same numbers as by way of float32.
        """
        device = image.device.type
        # Tensors without content are on a device that has no mixed precision. (torch.compile cannot ask which has.)
        if image.itemsize == 2 and device != "meta" and torch.is_autocast_enabled(device):
            return image.to(memory_format=_layout(self._first_weights(image.dim())))
        return super().as_weights(image)

    @abstractmethod
    def layer_map(self, layer: str, below: Tensor) -> Tensor:
        """The map of a layer before its ReLU, from the map below it after its ReLU; below the first is the image."""

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """Features of every layer up to and including `until` (None: all).

        Args:
            image: (N, 3, H, W) floats of any precision and layout, of a size that `check_size` takes.
            until: name of the deepest layer that is computed.

        Returns:
            By layer, in the order of computation, (N, C, h, w): before the ReLU, or after it where `post_relu` says so;
            the last, which heads read, is always after it.

        Raises:
            ConfigError: an image of another size, or no such layer.
        """
        self.check_size(*image.shape[-2:])
        if until is not None:
            self.check_layer(until)
        features: dict[str, Tensor] = {}
        x = self.as_weights(image)
        for name in self.feature_info:
            normed = self.layer_map(name, x)
            after = self.post_relu or name == self.last
            x = F.relu(normed, inplace=after)  # in place only where nobody gets to see the map before it
            features[name] = x if after else normed
            if name == until:
                break
        return features


@runtime_checkable
class DrawsWeights(Protocol):
    """A backbone that initialises itself, and not as `fastssl.layers.xavier_initialise` does."""

    def draw_weights(self, generator: torch.Generator) -> None:
        """Initialise all weights and statistics anew.

        Args:
            generator: a CPU generator, the only source of randomness.
        """


def _layout(weight: Tensor) -> torch.memory_format:
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def check_sides(height: int, width: int, *, least: int, step: int = 1, rest: int = 0) -> None:
    """Refuse an image with a side that is not of the form `step` k + `rest`, or that is below `least`.

    Raises:
        ConfigError: see above; the nearest sides are named.
    """
    for side in (height, width):
        if side % step != rest or side < least:
            lower = max((side - rest) // step * step + rest, least)
            form = f"{step} k + {rest}" if rest else f"{step} k"
            raise ConfigError(
                "the image's size does not fit the network",
                where="data.size",
                seen=f"{height} x {width}",
                expected=f"sides of at least {least}" if step == 1 else f"sides of the form {form}, at least {least}",
                hint=f"set data.size to {lower} or {'more' if step == 1 else f'{lower + step}, the nearest'}",
            )


def patch_convolutions(channels: int, stride: int) -> tuple[Convolution, ...]:
    """A discriminator's convolutions for a layer to which the authors of the method give none.

    The rule: 3 x 3 convolutions of stride 2 lead to a stride of 32, as in the authors' discriminators, which is 7 x 7
    decisions at 224 pixels. They double the map's channels up to 512. Convolutions of 1 x 1 with 512 channels make two
    of them at least. They are padded, so that maps of any size leave a decision.

    Args:
        channels: of the layer's map.
        stride: of the layer's map.
    """
    halvings = max(0, round(math.log2(32 / stride)))
    halving = [Convolution(min(512, channels << number), 3, 2, 1) for number in range(1, halvings + 1)]
    return (*halving, *[Convolution(512, 1, 1)] * (2 - halvings))


def scaled_channels(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8 and at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)
