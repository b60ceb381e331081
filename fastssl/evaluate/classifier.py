"""A network that tells classes of images: a subject's layers, those of CaffeNet above them, and a new last one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.backbones.alexnet import AlexNet
from fastssl.errors import ConfigError, UsageError
from fastssl.evaluate.foreign import TORCHVISION
from fastssl.layers import drawn_linear, fold_batch_norms, linear_of

_DEVIATION, _BIAS = 0.01, 0.1
"""Of layers that are drawn, as Kraehenbuehl's code draws its last one (github.com/philkr/voc-classification)."""
_FC_CHANNELS = 4096
_FC6_SIDE = 6
_LAST = "fc8"
_BIAS_RATE = 2.0


class Classifier(nn.Module):
    """A copy of a backbone, its batch norms folded, and fully connected layers, from images to scores of classes.

    AlexNets get the layers of CaffeNet: conv5, max pooling 3 x 3 of stride 2, fc6, fc7 and fc8, with dropout behind fc6
    and fc7. Those that the backbone has are its own: the 6 x 6 convolution of its fc6 reads just what it would read at
    the map's centre. Other backbones: the mean of the last map over its positions, dropout, fc8. What is not the
    backbone's is drawn: weights from N(0, 0.01), biases are 0.1.

    Args:
        backbone: stays as it is.
        num_classes: of the last layer.
        size: side of the images.
        dropout: fraction that is dropped in training mode.
        seed: of what is drawn.

    Raises:
        UsageError: the backbone, or its fc6, does not take images of this size; or batch norms that cannot be folded.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, size: int, dropout: float, seed: int) -> None:
        super().__init__()
        _check_size(backbone, size)
        self.backbone = fold_batch_norms(backbone).requires_grad_(True)
        self.dropout = dropout
        self.is_alexnet = backbone.name in (AlexNet.name, f"{TORCHVISION}alexnet")
        self.layer = "conv5" if self.is_alexnet else backbone.last
        device = next(backbone.parameters()).device
        with torch.no_grad():
            inputs = self._pooled(torch.zeros(1, 3, size, size, device=device)).shape[1:]
        layers = self._own_layers(inputs)
        hidden = [layer.out_features for layer in layers.values()] or [_FC_CHANNELS] * (2 if self.is_alexnet else 0)
        names = ("fc6", "fc7", _LAST) if self.is_alexnet else (_LAST,)
        generator = torch.Generator().manual_seed(seed)
        self.drawn = tuple(name for name in names if name not in layers)
        for name, (before, after) in zip(names, pairwise([inputs.numel(), *hidden, num_classes]), strict=True):
            if name in self.drawn:
                layers[name] = drawn_linear(before, after, generator, _DEVIATION, _BIAS)
        self.fully_connected = nn.ModuleDict(layers)
        self.to(device)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) to (N, classes) logits."""
        x = self._pooled(images).flatten(1)
        *hidden, last = self.fully_connected.values()
        for layer in hidden:
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        if not hidden:
            x = F.dropout(x, self.dropout, self.training)
        scores: Tensor = last(x)
        return scores

    def train(self, mode: bool = True) -> Classifier:
        """Training or evaluation mode; the backbone, which has no batch norms left, stays in the latter."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def words(self) -> str:
        """What it is made of, in words."""
        own = ", ".join(name for name in self.fully_connected if name not in self.drawn)
        pooling = "pool5 of stride 2" if self.is_alexnet else "mean"
        return f"{pooling} of {self.layer}{f', {own} as they come' if own else ''}, {', '.join(self.drawn)} drawn"

    def freeze_below(self, layer: str) -> None:
        """Keep all layers below one as they are; `all` keeps none.

        Raises:
            UsageError: there is no such layer.
        """
        if layer == "all":
            return
        below = list(self.backbone.feature_info)
        below = below[: below.index(self.layer) + 1]
        names = [*below, *self.fully_connected]
        if layer not in names:
            expected = ", ".join(("all", *names))
            raise UsageError("the network has no such layer", where="--train-from", seen=layer, expected=expected)
        kept = names[: names.index(layer)]
        if frozen := [name for name in below if name in kept]:
            self.backbone.freeze(frozen[-1])
        for name in kept[len(frozen) :]:
            self.fully_connected[name].requires_grad_(False)

    def groups(self, lr: float, fc_factor: float) -> list[dict[str, Any]]:
        """The parameters that learn, for an optimizer: biases by twice the rate of weights, and those of fully
        connected layers by `fc_factor` times that."""
        by_rate = dict[float, list[nn.Parameter]]()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                factor = _BIAS_RATE if name.endswith(".bias") else 1.0
                factor *= fc_factor if name.startswith("fully_connected.") else 1.0
                by_rate.setdefault(lr * factor, []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]

    def _pooled(self, images: Tensor) -> Tensor:
        """(N, C, 6, 6) of AlexNets, else (N, C)."""
        found = self.backbone(images, until=self.layer)[self.layer]
        found = found.relu() if self.backbone.has_relu else found
        return F.max_pool2d(found, 3, 2) if self.is_alexnet else found.mean((2, 3))

    def _own_layers(self, inputs: torch.Size) -> dict[str, nn.Linear]:
        """The fully connected layers that the backbone has, which it loses."""
        if not isinstance(self.backbone, AlexNet):
            return {}
        if inputs[1:] != (_FC6_SIDE, _FC6_SIDE):
            raise UsageError(
                "the fc6 of the network does not take images of this size",
                where="--size",
                seen=f"a pooled map of {inputs[1]} x {inputs[2]}",
                expected=f"{_FC6_SIDE} x {_FC6_SIDE}, as of 227 pixels",
            )
        layers = self.backbone.layers
        return {name: linear_of(layers.pop(name).get_submodule("conv")) for name in ("fc6", "fc7")}


def _check_size(backbone: Backbone, size: int) -> None:
    try:
        backbone.check_size(size, size)
    except ConfigError as error:
        raise UsageError(
            "the network does not take images of this size",
            where=f"{backbone.name}, --size",
            seen=error.seen,
            expected=error.expected,
            hint="give --size one that it takes; the protocol's is 227",
        ) from error
