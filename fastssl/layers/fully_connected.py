"""Fully connected layers: of a convolution's weights, or drawn."""

from __future__ import annotations

import torch
from torch import nn


def linear_of(convolution: nn.Module) -> nn.Linear:
    """The layer that does what a convolution does whose kernel is as large as its input; it learns where that does."""
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    weight = convolution.weight.detach().flatten(1)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    layer.load_state_dict({"weight": weight, "bias": convolution.bias.detach()})
    return layer.requires_grad_(convolution.weight.requires_grad)


def drawn_linear(
    inputs: int, outputs: int, generator: torch.Generator, deviation: float, bias: float = 0.0
) -> nn.Linear:
    """A layer with weights from N(0, deviation), drawn by a CPU generator, and biases of one value."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=deviation, generator=generator)
    nn.init.constant_(layer.bias, bias)
    return layer
