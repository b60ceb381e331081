"""Weights by what they do to images; the oracle makes the same passes with torch's functions, or is a closed form."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from fastssl.backbones import Backbone, build_backbone
from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.layers import data_dependent, initialise_by_data, rescaled
from fastssl.layers.data_dependent import Draw, _centres

NARROW = BackboneSettings(width=0.05, fc_channels=16)
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
STRIDES, PADDINGS, DILATIONS = (4, 1, 1, 1, 1, 1, 1), (2, 2, 1, 1, 1, 5, 0), (1, 1, 1, 1, 1, 2, 1)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    """Random images, smoother from left to right than down, two batches of 12."""
    coarse = torch.rand(24, 3, 24, 8, generator=torch.Generator().manual_seed(3))
    return list((F.interpolate(coarse, size=(67, 67), mode="bicubic") - 0.45).split(12))


def drawn(images: list[Tensor], draw: Draw = "kmeans", name: str = "alexnet") -> Backbone:
    backbone = build_backbone(NARROW.model_copy(update={"backbone": name}))
    initialise_by_data(backbone, images, torch.Generator().manual_seed(0), draw=draw)
    return backbone


@pytest.fixture(scope="module")
def made(images: list[Tensor]) -> Backbone:
    """AlexNet with weights by k-means, for tests that leave it as it is."""
    return drawn(images)


def chain(weights: list[Tensor], biases: list[Tensor], image: Tensor) -> list[Tensor]:
    """Maps of AlexNet without norms, before their ReLU; the last one after it."""
    maps, x = list[Tensor](), image
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if number in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        if number == 5:
            x = F.max_pool2d(x, 3, 1, 1)
        maps.append(F.conv2d(x, weight, bias, STRIDES[number], PADDINGS[number], DILATIONS[number]))
        x = maps[-1].relu()
    return [*maps[:-1], x]


def folded(backbone: Backbone) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of AlexNet's layers, the norms in evaluation mode made part of them in float64."""
    state = {name: value.double() for name, value in backbone.state_dict().items()}
    weights, biases = list[Tensor](), list[Tensor]()
    for layer in LAYERS:
        weight, bias = state[f"layers.{layer}.conv.weight"], state[f"layers.{layer}.conv.bias"]
        if f"layers.{layer}.norm.weight" in state:
            scale, shift, mean, variance = (
                state[f"layers.{layer}.norm.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
            )
            factor = scale / (variance + 1e-5).sqrt()
            weight, bias = weight * factor[:, None, None, None], (bias - mean) * factor + shift
        weights.append(weight.requires_grad_())
        biases.append(bias)
    return weights, biases


def gradient_ratios(weights: list[Tensor], biases: list[Tensor], images: list[Tensor]) -> Tensor:
    """Of each layer's weights, over the batches, by N(0, 1) on the last map from the seed 0."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(len(weights), dtype=torch.float64)
    for image in images:
        with torch.enable_grad():
            last = chain(weights, biases, image.double())[-1]
        top = torch.randn(last.shape, generator=generator).double()
        squares += torch.stack([one.square().mean() for one in torch.autograd.grad(last, weights, top)])
    means = torch.stack([weight.detach().square().mean() for weight in weights])
    return (squares / len(images) / means).sqrt()


@pytest.mark.parametrize("draw", ["kmeans", "normal"])
def test_channels_and_gradients_are_as_prescribed(images: list[Tensor], made: Backbone, draw: Draw) -> None:
    """All channels of a layer have one deviation d, the mean 0.1 d, and in the last layer d = 1."""
    backbone = copy.deepcopy(made) if draw == "kmeans" else drawn(images, draw)
    weights, biases = folded(backbone)
    with torch.no_grad():
        maps = [chain(weights, biases, image.double()) for image in images]
        before = F.conv2d(torch.cat([m[-2] for m in maps]).relu(), weights[-1], biases[-1])
    of_layers = [torch.cat([m[number] for m in maps]) for number in range(6)]
    for number, map_ in enumerate([*of_layers, before]):
        deviation, mean = torch.std_mean(map_, dim=(0, 2, 3), correction=0)
        assert deviation.max() / deviation.min() == pytest.approx(1, abs=1e-3), number
        torch.testing.assert_close(mean / deviation, torch.full_like(mean, 0.1), atol=1e-3, rtol=0)
    assert float(deviation.mean()) == pytest.approx(1, abs=0.01)
    ratios = gradient_ratios(weights, biases, images)
    assert (ratios / ratios.mean() - 1).abs().max() < 0.01
    backbone.eval()
    for layer, expected in zip(LAYERS, maps[0], strict=True):
        torch.testing.assert_close(backbone(images[0])[layer].double(), expected, atol=1e-4, rtol=1e-3)


def test_in_training_mode_it_is_nearly_the_same_network(images: list[Tensor], made: Backbone) -> None:
    """All batches together have the very statistics that the norms were given."""
    joint = torch.cat(images)
    with torch.no_grad():
        expected = copy.deepcopy(made).eval()(joint)["conv5"]
        torch.testing.assert_close(copy.deepcopy(made).train()(joint)["conv5"], expected, atol=1e-3, rtol=1e-2)


def test_principal_components_are_uncorrelated_on_the_images(images: list[Tensor]) -> None:
    """Which fails where a patch's numbers are in another order than a weight's."""
    weight = drawn(images, "pca").state_dict()["layers.conv1.conv.weight"]
    assert len(weight) == 8
    found = F.conv2d(torch.cat(images), weight, None, 4, 2).transpose(0, 1).flatten(1)
    others = torch.corrcoef(found) - torch.eye(len(found))
    assert others.abs().max() < 0.1


def test_centres_of_kmeans_are_those_of_scipy() -> None:
    """From the same random points, after as many rounds."""
    points = F.normalize(torch.randn(500, 4, generator=torch.Generator().manual_seed(1)).double())
    found = _centres(points, 12, torch.Generator().manual_seed(2))
    first = torch.randperm(500, generator=torch.Generator().manual_seed(2))[:12]
    expected, _ = kmeans2(points.numpy(), points[first].numpy(), iter=10, minit="matrix")
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_it_is_decided_by_the_generator_and_leaves_modes_as_they_are(images: list[Tensor], made: Backbone) -> None:
    first, other = (build_backbone(NARROW.model_copy(update={"frozen": "conv1"})) for _ in range(2))
    initialise_by_data(first, images, torch.Generator().manual_seed(0))
    initialise_by_data(other, images, torch.Generator().manual_seed(1), draw="normal")
    for name, value in first.state_dict().items():
        assert torch.equal(value, made.state_dict()[name]), name
    assert not torch.equal(
        first.state_dict()["layers.conv1.conv.weight"], other.state_dict()["layers.conv1.conv.weight"]
    )
    assert first.training
    assert not first.get_submodule("layers.conv1").training
    wanted = {name for name, parameter in first.named_parameters() if not parameter.requires_grad}
    assert wanted == {f"layers.conv1.{name}" for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")}


@torch.no_grad()
def test_rescaling_keeps_features_but_for_a_factor(images: list[Tensor], made: Backbone) -> None:
    """Of weights that differ by much from layer to layer, and norms with statistics."""
    backbone = copy.deepcopy(made)
    generator = torch.Generator().manual_seed(5)
    for number, (name, value) in enumerate(backbone.named_parameters()):
        value.data *= (0.3, 2.0, 1.0)[number % 3] if name.endswith("weight") else 1
        value.data += 0.01 * value.std() * torch.randn(value.shape, generator=generator)
    before = copy.deepcopy(backbone).eval()
    found = rescaled(backbone, images)
    assert not [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    weights, biases = folded(found)
    ratios = gradient_ratios(weights, biases, images)
    assert (ratios / ratios.mean() - 1).abs().max() < 0.01
    expected = before(images[0])
    for layer, map_ in found(images[0]).items():
        factor = map_.std() / expected[layer].std()
        torch.testing.assert_close(map_, expected[layer] * factor, atol=1e-3 * float(map_.abs().max()), rtol=0)
    weights, biases = folded(before)
    apart = gradient_ratios(weights, biases, images)
    assert (apart / apart.mean() - 1).abs().max() > 0.3


def test_branches_that_are_added_up_are_normalised_alone(
    images: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    small = [images[0][:4]]
    with caplog.at_level(logging.WARNING, "fastssl"):
        backbone = drawn(small, "normal", "resnet50").eval()
    assert "no factors were found" in caplog.text
    stem = torch.cat([backbone(image, until="conv1")["conv1"] for image in small])
    deviation, mean = torch.std_mean(stem, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=1e-3, rtol=0)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.1), atol=1e-3, rtol=0)
    with pytest.raises(UsageError, match="cannot be rescaled"):
        rescaled(backbone, small)


def test_what_cannot_be_drawn_is_refused(images: list[Tensor]) -> None:
    with pytest.raises(DataError, match=r"cannot decide on weights(.|\n)*alexnet, layers.conv1.conv"):
        drawn([torch.zeros(2, 3, 67, 67)], "normal")
    backbone = build_backbone(NARROW)
    backbone.get_submodule("layers.conv3").add_module("more", nn.GroupNorm(1, 16))
    with pytest.raises(ConfigError, match=r"cannot be drawn by data(.|\n)*layers.conv3.more: GroupNorm"):
        initialise_by_data(backbone, images, torch.Generator())


def test_it_tells_how_far_it_is_where_it_takes_long(
    images: list[Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_dependent, "_TELL_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "fastssl"):
        drawn([images[0][:2]], "normal")
    assert [line for line in caplog.messages if "7 layers" in line] == [
        f"alexnet: weights drawn by images for {number} of 7 layers" for number in range(1, 8)
    ]
