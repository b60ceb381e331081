"""Initialisation: reproducible, on its own generator, with the published distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastssl.methods import load_config
from fastssl.methods.cross_domain import ModelConfig, Networks, build_networks

TINY = load_config("tiny").model


def _equal(a: Networks, b: Networks) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(x, right[name]) for name, x in left.items())


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = build_networks(TINY, seed=7)
    torch.manual_seed(2)
    assert _equal(first, build_networks(TINY, seed=7))
    assert not _equal(first, build_networks(TINY, seed=8))


def test_the_global_generator_stays_as_it_was() -> None:
    state = torch.get_rng_state()
    build_networks(TINY, seed=7)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", ["none", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6"])
def test_runs_that_adapt_other_layers_start_alike(layer: str) -> None:
    first = build_networks(TINY, seed=7)
    other = build_networks(TINY.model_copy(update={"adapted_layer": layer}), seed=7)
    for part in ("backbone", "heads"):
        for name, x in first.get_submodule(part).state_dict().items():
            assert torch.equal(x, other.get_submodule(part).state_dict()[name])
    assert (other.discriminator is None) == (layer == "none")
    assert list(other.parts()) == ["backbone", "heads", "discriminator"][: 2 if layer == "none" else 3]


@pytest.mark.parametrize("gain", [0.02, 1.0])
def test_distribution_of_the_weights(gain: float) -> None:
    networks = build_networks(TINY.model_copy(update={"init_gain": gain}), seed=7)
    scales: list[float] = []
    for module in networks.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            area = math.prod(module.kernel_size)
            expected = gain * math.sqrt(2 / ((module.in_channels + module.out_channels) * area))
            # Five standard errors of a sample of this size, of the mean and of the standard deviation.
            sigma = expected / math.sqrt(module.weight.numel())
            assert abs(module.weight.mean().item()) < 5 * sigma
            assert abs(module.weight.std().item() - expected) < 5 * sigma / math.sqrt(2)
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            scales += module.weight.tolist()
            assert not module.bias.any()
            if module.track_running_stats:
                assert module.running_mean is not None
                assert module.running_var is not None
                assert not module.running_mean.any()
                assert torch.equal(module.running_var, torch.ones_like(module.running_var))
    values = torch.tensor(scales)
    assert abs(values.mean().item() - 1) < 5 * 0.02 / math.sqrt(len(scales))
    assert abs(values.std().item() - 0.02) < 5 * 0.02 / math.sqrt(2 * len(scales))


def test_the_published_gain_gives_conv1_weights_of_2_6e_4() -> None:
    config = ModelConfig(fc_channels=16, head_channels=8)
    weight = build_networks(config, seed=7).backbone.get_parameter("layers.conv1.conv.weight")
    assert weight.shape == (96, 3, 11, 11)
    assert 2.5e-4 < weight.std().item() < 2.7e-4
