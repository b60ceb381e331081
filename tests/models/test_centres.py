"""Where a map's positions lie, against what convolutions and poolings say by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fastssl.backbones import BACKBONES, Backbone, LayerInfo, check_sides, first_centres
from fastssl.config import BackboneSettings

# Kernel, stride, padding and dilation of what leads from each layer to the next, one after the other.
_POOL = (3, 2, 0, 1)
_LADDERS: dict[str, dict[str, Sequence[tuple[int, int, int, int]]]] = {
    "alexnet": {
        "conv1": [(11, 4, 2, 1)],
        "conv2": [_POOL, (5, 1, 2, 1)],
        "conv3": [_POOL, (3, 1, 1, 1)],
        "conv4": [(3, 1, 1, 1)],
        "conv5": [(3, 1, 1, 1)],
        "fc6": [(3, 1, 1, 1), (6, 1, 5, 2)],
        "fc7": [(1, 1, 0, 1)],
    },
    "vgg16": {
        name: [(2, 2, 0, 1)] if name != "conv1" else [] for name in ("conv1", "conv2", "conv3", "conv4", "conv5")
    },
    "resnet50": {
        "conv1": [(7, 2, 3, 1)],
        "conv2": [(3, 2, 1, 1)],
        **{name: [(3, 2, 1, 1)] for name in ("conv3", "conv4", "conv5")},
    },
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_first_centres_are_those_of_the_convolutions(name: str) -> None:
    stride, centre, expected = 1, 0.0, {}
    for layer, steps in _LADDERS[name].items():
        for kernel, step, padding, dilation in steps:
            centre += stride * (dilation * (kernel - 1) / 2 - padding)
            stride *= step
        expected[layer] = centre
    assert first_centres(BACKBONES[name]) == expected


class Everywhere(Backbone):
    """Tiles of 4 pixels, each of which also sees the mean of all, as attention does."""

    name: ClassVar[str] = "everywhere"

    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__(settings)
        self.feature_info = {"local": LayerInfo(8, 4), "global": LayerInfo(8, 4)}
        self.tiles = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        local = self.tiles(image)
        return {"local": local, "global": local + local.mean(dim=(2, 3), keepdim=True)}

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        check_sides(height, width, step=4, least=4)


def test_what_sees_everything_has_tiles_and_no_generator_is_moved() -> None:
    before = torch.get_rng_state()
    assert first_centres(Everywhere) == {"local": 1.5, "global": 1.5}
    assert torch.equal(torch.get_rng_state(), before)
