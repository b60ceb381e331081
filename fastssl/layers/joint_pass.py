"""A pass of two domains through a backbone as one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.errors import ConfigError


class JointPass:
    """Images of two domains pass together up to a layer, and those of the first go on alone above it.

    So batch norms up to the layer, and their running statistics, see both domains at once, and those above it the first
    alone. What a backbone computes outside of its modules, such as a ReLU, it may compute for both.

    Args:
        backbone: gets a hook on each module above the layer, which does nothing in other passes.
        layer: of the backbone.
    """

    def __init__(self, backbone: Backbone, layer: str) -> None:
        self._backbone, self._layer = backbone, layer
        self._going_on: int | None = None
        for module in backbone.modules_above(layer):
            module.register_forward_pre_hook(self._leave_the_others)

    def __call__(self, first: Tensor, second: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The features of the first images in every layer, and those of the second at the layer.

        Args:
            first: (N, 3, H, W).
            second: (M, 3, H, W).

        Returns:
            By layer, (N, C, h, w); and (M, C, h, w). What the second lend to the statistics of the first is part of the
            gradient of both.

        Raises:
            ConfigError: the backbone has a layer above that takes all images nevertheless.
        """
        self._going_on = len(first)
        try:
            features = self._backbone(torch.cat((first, second)))
        finally:
            self._going_on = None
        self._check_that_the_first_went_on_alone(features, len(first))
        return {name: z[: len(first)] for name, z in features.items()}, features[self._layer][len(first) :]

    def _check_that_the_first_went_on_alone(self, features: dict[str, Tensor], num: int) -> None:
        layers = list(features)
        for name in layers[layers.index(self._layer) + 1 :]:
            if len(features[name]) != num:
                raise ConfigError(
                    "the backbone has no module of its own between two layers, where photos could be left behind",
                    where="model.passes",
                    seen=f"joint, with model.adapted_layer={self._layer} and {name} above it",
                    hint="set model.passes=separate, or adapt another layer",
                )

    def _leave_the_others(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Let a module above the layer have the first images alone; behind another one it has them already."""
        if self._going_on is None or not isinstance(inputs[0], Tensor) or len(inputs[0]) == self._going_on:
            return None
        return inputs[0][: self._going_on], *inputs[1:]
