"""Folding of batch norms into the convolutions in front of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.errors import UsageError

Norm = nn.BatchNorm2d | nn.SyncBatchNorm

_TOLERANCE = 1e-3
"""Of the largest value of a map: far more than float32's rounding leaves, and far less than a wrong folding does."""


def fold_batch_norms(backbone: Backbone) -> Backbone:
    """The network without its batch norms, with the same features in evaluation mode.

    A batch norm multiplies and shifts each channel of a convolution's map by numbers that no longer change, so the
    convolution can do it: W' = W g / sqrt(v + e) and b' = (b - m) g / sqrt(v + e) + beta, computed in float64. Maps
    differ by rounding alone: by less than 1e-4 of a map's largest value in float32, and 1e-12 in float64.

    Folded, `alexnet` is in CaffeNet's form: `layers.fc6.conv.weight` is (4096, 256, 6, 6), which reshapes to the
    (4096, 9216) of a fully connected layer behind a pooling of stride 2 (docs/reproduction.md, section 3.3).

    Args:
        backbone: stays as it is.

    Returns:
        A copy, in evaluation mode; in training mode it would learn without batch norms.

    Raises:
        UsageError: a batch norm that follows no convolution, or one that shares its convolution; it is named.
    """
    image, folded = _image(backbone), copy.deepcopy(backbone).eval()
    with torch.no_grad():
        expected = folded(image)
        pairs = convolutions_of_norms(folded, image)
        for name, norm in list(folded.named_modules()):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm not in pairs or norm.running_mean is None:
                raise UsageError(
                    "a batch norm cannot be folded",
                    where=f"{backbone.name}, {name}",
                    expected="one that follows a convolution and keeps running statistics",
                )
            _fold(norm, pairs[norm])
            # Kinds of timm's have what follows the norm, such as its activation, as children; others have none.
            folded.set_submodule(name, nn.Sequential(*norm.children()))
        _check(folded(image), expected, backbone.name)
    return folded


def _image(backbone: Backbone) -> Tensor:
    side = backbone.small_side()
    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) - 0.5
    return image.to(next(backbone.parameters()).device)


def convolutions_of_norms(backbone: Backbone, image: Tensor) -> dict[Norm, nn.Conv2d]:
    """The convolution that gave each batch norm what it normalises, as a pass shows it."""
    gave: dict[Tensor, nn.Conv2d] = {}  # a tensor is a key by its identity
    pairs: dict[Norm, nn.Conv2d] = {}

    def convolved(module: nn.Conv2d, _: object, output: Tensor) -> None:
        gave[output] = module

    def normed(module: Norm, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] in gave:
            pairs[module] = gave[inputs[0]]

    hooks = [one.register_forward_hook(convolved) for one in backbone.modules() if isinstance(one, nn.Conv2d)]
    hooks += [one.register_forward_pre_hook(normed) for one in backbone.modules() if isinstance(one, Norm)]
    try:
        backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def _fold(norm: nn.BatchNorm2d, convolution: nn.Conv2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = convolution.weight, -norm.running_mean.double()
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if convolution.bias is not None:
        bias += convolution.bias
    if norm.affine:
        factor *= norm.weight
    bias *= factor
    if norm.affine:
        bias += norm.bias
    weight.copy_(weight * factor.view(-1, 1, 1, 1))
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)


def _check(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    for layer, map_ in expected.items():
        difference = float((found[layer] - map_).abs().max())
        if not difference <= _TOLERANCE * float(map_.abs().max()):
            raise UsageError(
                "the batch norms cannot be folded: a convolution serves more than its batch norm",
                where=f"{name}, {layer}",
                seen=f"features that differ by {difference:.2g}",
            )
