"""The memory layout that networks and images get."""

from __future__ import annotations

import pytest
import torch
from small_steps import CPU, small_config

from fastssl.backbones import build_backbone
from fastssl.backbones.alexnet import AlexNet
from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError, UsageError
from fastssl.methods import StepContext
from fastssl.methods.method import is_faster_channels_last, join_batch_norms

CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize(
    ("asked", "channels", "expected"),
    [("auto", 64, True), ("auto", 2048, False), ("false", 64, False), ("true", 2048, True)],
)
def test_wide_layers_lie_contiguous_on_a_cpu_unless_the_settings_say_otherwise(
    asked: str, channels: int, expected: bool
) -> None:
    context = StepContext(small_config(f"train.channels_last={asked}"), CPU)
    placed = context.placed(torch.nn.Conv2d(channels, channels, 2))
    assert context.channels_last == placed.weight.is_contiguous(memory_format=CHANNELS_LAST) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["train.amp=true"], True),
        (["train.amp=true", "train.tf32=false"], True),
        (["train.tf32=true"], True),
        (["train.tf32=false"], False),
    ],
)
def test_channels_lie_last_on_a_gpu_whose_matrix_units_work(settings: list[str], expected: bool) -> None:
    wide = torch.nn.Conv2d(2048, 2048, 2)
    assert is_faster_channels_last(wide, "cuda", small_config(*settings).train) == expected


@pytest.mark.parametrize("of_image", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("of_weights", [torch.contiguous_format, CHANNELS_LAST])
def test_a_backbone_computes_in_the_layout_of_its_weights(
    of_image: torch.memory_format, of_weights: torch.memory_format
) -> None:
    backbone = AlexNet(BackboneSettings(width=0.1, fc_channels=16)).to(memory_format=of_weights)
    features = backbone(torch.randn(2, 3, 67, 67).contiguous(memory_format=of_image))
    assert all(x.is_contiguous(memory_format=of_weights) for x in features.values())


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50", "timm:resnet10t"])
def test_norms_that_are_trained_see_all_ranks_and_frozen_ones_stay(name: str) -> None:
    backbone = build_backbone(BackboneSettings(backbone=name, width=0.1, fc_channels=16))
    layer = list(backbone.feature_info)[1]
    backbone.freeze(layer)
    frozen = {name for name, module in backbone.named_modules() if not module.training}
    join_batch_norms(backbone)
    backbone.eval()
    backbone.train()
    norms = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    joined = {name for name, module in norms.items() if isinstance(module, torch.nn.SyncBatchNorm)}
    assert joined
    assert norms.keys() - joined == norms.keys() & frozen
    assert {name for name, module in norms.items() if not module.training} == norms.keys() & frozen


def test_norms_that_do_more_than_torch_s_are_refused() -> None:
    """In torch's place of one of timm's the activation behind it would be lost, without a word."""
    backbone = build_backbone(BackboneSettings(backbone="timm:mobilenetv3_small_050"))
    with pytest.raises(ConfigError, match=r"cannot see all ranks[^$]*BatchNormAct2d"):
        join_batch_norms(backbone)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50", "timm:resnet10t"])
def test_an_image_without_its_batch_is_refused(name: str) -> None:
    backbone = build_backbone(BackboneSettings(backbone=name, width=0.1, fc_channels=16)).eval()
    side = backbone.small_side()
    with pytest.raises(UsageError, match=r"no batch[^$]*3 dimensions[^$]*N, 3, height, width"):
        backbone(torch.rand(3, side, side))
