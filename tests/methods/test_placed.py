"""The memory layout that networks and images get."""

from __future__ import annotations

import pytest
import torch
from small_steps import CPU, small_config

from fastssl.backbones.alexnet import AlexNet
from fastssl.config import BackboneSettings
from fastssl.methods import StepContext
from fastssl.methods.method import is_faster_channels_last

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
