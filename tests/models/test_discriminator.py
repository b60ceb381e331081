"""Discriminators: the protocol's table, decisions per image, and independence of the passes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones.alexnet import AlexNet
from fastssl.errors import ConfigError
from fastssl.layers import Discriminator
from fastssl.methods.cross_domain import ModelConfig, build_networks

NARROW = ModelConfig(width=0.1, fc_channels=24, head_channels=8, init_gain=1.0)
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
# Kernels and channels as the protocol's table gives them, and its millions of parameters.
TABLE: dict[str, tuple[list[tuple[int, int, int]], float]] = {
    "conv1": ([(3, 96, 192), (3, 192, 384), (3, 384, 512), (1, 512, 1)], 2.60),
    "conv2": ([(3, 256, 512), (3, 512, 640), (1, 640, 1)], 4.13),
    "conv3": ([(3, 384, 512), (1, 512, 512), (1, 512, 1)], 2.04),
    "conv4": ([(3, 384, 512), (1, 512, 512), (1, 512, 1)], 2.04),
    "conv5": ([(3, 256, 512), (1, 512, 512), (1, 512, 1)], 1.45),
    "fc6": ([(3, 4096, 512), (1, 512, 256), (1, 256, 1)], 19.0),
}


def _narrow(layer: str) -> Discriminator:
    discriminator = build_networks(NARROW.model_copy(update={"adapted_layer": layer}), seed=1).discriminator
    assert discriminator is not None
    return discriminator


def _conv5(seed: int = 0) -> Tensor:
    return torch.randn(4, 24, 13, 13, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_published_discriminators(layer: str) -> None:
    config = ModelConfig(adapted_layer=layer)
    with torch.device("meta"):
        backbone = AlexNet(config)
        discriminator = Discriminator(backbone, layer, config.width)
        logits = discriminator(backbone(torch.empty(2, 3, 227, 227), until=layer)[layer])
    convolutions, millions = TABLE[layer]
    weights = sum(k * k * i * o + o for k, i, o in convolutions)
    norms = sum(2 * o for _, _, o in convolutions[:-1])
    assert sum(p.numel() for p in discriminator.parameters()) == weights + norms
    assert round((weights + norms) / 1e6, 1 if millions > 10 else 2) == millions
    assert tuple(logits.shape) == (2, 1, 6, 6)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_works_from_67_pixels_on_and_says_so_below(layer: str) -> None:
    discriminator, backbone = _narrow(layer), AlexNet(NARROW)
    for size, side in ((67, 1), (99, 2)):
        assert discriminator(backbone(torch.randn(2, 3, size, size), until=layer)[layer]).shape == (2, 1, side, side)
    with pytest.raises(ConfigError, match=r"(?s)data\.size.*at least 67"):
        discriminator(backbone(torch.randn(2, 3, 51, 51), until=layer)[layer])


def test_values_are_those_of_the_layers_written_out() -> None:
    discriminator = _narrow("conv5").double()
    x = features = _conv5().double()
    state = {name: p.detach() for name, p in discriminator.layers.named_parameters()}
    for i, stride in ((0, 2), (3, 1)):
        x = F.conv2d(x, state[f"{i}.weight"], state[f"{i}.bias"], stride=stride)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (state[f"{i + 1}.{key}"][:, None, None] for key in ("weight", "bias"))
        x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        x = torch.where(x > 0, x, 0.2 * x)
    x = F.conv2d(x, state["6.weight"], state["6.bias"])
    torch.testing.assert_close(discriminator(features), x)
    assert x.min() < 0 or x.max() > 1  # logits, no probabilities


def test_passes_do_not_depend_on_one_another() -> None:
    discriminator = _narrow("conv5")
    before = deepcopy(discriminator.state_dict())
    assert not list(discriminator.buffers())
    first = discriminator(_conv5(0))
    discriminator(100 * _conv5(1))
    assert torch.equal(discriminator(_conv5(0)), first)
    assert torch.equal(discriminator.eval()(_conv5(0)), first)
    assert all(torch.equal(before[name], x) for name, x in discriminator.state_dict().items())


def test_its_channels_scale_with_the_width() -> None:
    convolutions = [m for m in _narrow("conv2").modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [(24, 48), (48, 64), (64, 1)]


def test_the_features_are_left_as_they_are() -> None:
    features = _conv5()
    _narrow("conv5")(features)
    assert torch.equal(features, _conv5())
