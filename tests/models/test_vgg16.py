"""VGG16, its heads and its discriminators: against torchvision's network and the authors' numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones.vgg16 import VGG16
from fastssl.batch import PLANES
from fastssl.layers import Discriminator, build_heads
from fastssl.methods.cross_domain import ModelConfig, build_networks

NARROW = ModelConfig(backbone="vgg16", width=0.1, head_channels=8, init_gain=1.0, adapted_layer="none")


def test_it_is_torchvision_s_vgg16_with_batch_norms() -> None:
    """All weights moved over in order: the maps are those in front of its poolings."""
    theirs = pytest.importorskip("torchvision").models.vgg16_bn(weights=None).features.eval()
    ours = VGG16(ModelConfig(), post_relu=True).eval()
    ours.layers.load_state_dict(dict(zip(ours.layers.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    expected: list[Tensor] = []
    with torch.no_grad():
        features = ours(x)
        for layer in theirs:
            if isinstance(layer, nn.MaxPool2d):
                expected.append(x)
            x = layer(x)
        for ours_, theirs_ in zip(features.values(), expected, strict=True):
            torch.testing.assert_close(ours_, theirs_)


def test_the_authors_shapes_at_224_pixels() -> None:
    config = ModelConfig(backbone="vgg16")
    with torch.device("meta"):
        backbone = VGG16(config)
        features = backbone(torch.empty(2, 3, 224, 224))
        heads = build_heads(backbone, PLANES, 64, shortest_normal=1e-4)
        predictions = heads(features, 224, 224)
        decisions = {layer: tuple(Discriminator(backbone, layer, 1.0)(x).shape[2:]) for layer, x in features.items()}
    assert {name: tuple(x.shape[1:]) for name, x in features.items()} == {
        "conv1": (64, 224, 224), "conv2": (128, 112, 112), "conv3": (256, 56, 56), "conv4": (512, 28, 28),
        "conv5": (512, 14, 14),
    }  # fmt: skip
    assert {task: tuple(x.shape[1:]) for task, x in predictions.items()} == {
        "depth": (1, 224, 224), "normal": (3, 224, 224), "edge": (1, 224, 224)
    }  # fmt: skip
    assert decisions == {"conv1": (7, 7), "conv2": (7, 7), "conv3": (7, 7), "conv4": (6, 6), "conv5": (6, 6)}

    def up(inputs: int, outputs: int) -> int:
        return 16 * inputs * outputs + 3 * outputs

    per_task = up(1024, 256) + up(512, 128) + up(256, 64)
    outputs = sum(64 * 9 * n + n for n in (1, 1, 3))
    assert sum(p.numel() for p in heads.parameters()) == up(512, 512) + 3 * per_task + outputs
    judging = {"conv4": 4, "conv5": 1}
    for layer, second in judging.items():
        with torch.device("meta"):
            made = Discriminator(backbone, layer, 1.0)
        weights = 512 * 16 * 1024 + 1024 * second * 1024 + 1024 + (1024 + 1024 + 1) + 2 * 2 * 1024
        assert sum(p.numel() for p in made.parameters()) == weights


def test_heads_are_the_authors_layers_written_out() -> None:
    networks = build_networks(NARROW, seed=1).double()
    features = networks.backbone(torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0)))
    state = {name: x.detach() for name, x in networks.heads.named_parameters()}

    def up(x: Tensor, name: str) -> Tensor:
        y = F.conv_transpose2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], stride=2, padding=1)
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (state[f"{name}.1.{key}"][:, None, None] for key in ("weight", "bias"))
        return ((y - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    x = shared = up(features["conv5"], "shared")
    predictions = networks.heads(features, 48, 32)
    for task in ("depth", "edge"):
        x = shared
        for number, skip in enumerate(("conv4", "conv3", "conv2")):
            x = up(torch.cat([x, features[skip].clamp(min=0)], 1), f"heads.{task}.{number}")
        x = F.conv_transpose2d(x, state[f"heads.{task}.3.weight"], state[f"heads.{task}.3.bias"], padding=1)
        torch.testing.assert_close(predictions[task], x)
