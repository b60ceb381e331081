"""Folding of batch norms: the same features without them, its formula in NumPy, and CaffeNet's fc6."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_weights import made_weights
from torch import Tensor, nn

from fastssl.backbones import BACKBONES, LayerInfo, SequentialBackbone, check_sides
from fastssl.config import BackboneSettings
from fastssl.errors import UsageError
from fastssl.layers import fold_batch_norms

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", [*BACKBONES, "timm:resnet10t", "timm:mobilenetv3_small_050", "timm:test_vit"])
def test_features_are_the_same_without_batch_norms(name: str, dtype: torch.dtype) -> None:
    backbone = made_weights(name).backbone.to(dtype)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = fold_batch_norms(backbone.train())
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not folded.training
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    side = backbone.small_side()
    image = torch.randn(3, 3, side, side, dtype=dtype)
    with torch.no_grad():
        expected, found = backbone.eval()(image), folded(image)
    assert list(found) == list(expected)
    for layer, map_ in expected.items():
        assert map_.abs().max() > 0.01
        assert (found[layer] - map_).abs().max() <= TOLERANCES[dtype] * map_.abs().max(), layer


@pytest.mark.parametrize(("name", "convolution", "norm"), [
    ("alexnet", "layers.conv1.conv", "layers.conv1.norm"),
    ("resnet50", "layer2.0.downsample.0", "layer2.0.downsample.1"),
])  # fmt: skip
def test_a_convolution_has_the_weights_of_the_formula(name: str, convolution: str, norm: str) -> None:
    backbone = made_weights(name).backbone
    state = {key: value.double().numpy() for key, value in backbone.state_dict().items()}
    folded = fold_batch_norms(backbone).get_submodule(convolution)
    factor = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
    bias = state.get(f"{convolution}.bias", 0.0) - state[f"{norm}.running_mean"]
    np.testing.assert_allclose(
        folded.get_parameter("weight").detach().numpy(),
        state[f"{convolution}.weight"] * factor[:, None, None, None],
        rtol=1e-6,
    )
    expected = bias * factor + state[f"{norm}.bias"]
    np.testing.assert_allclose(folded.get_parameter("bias").detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_alexnet_folded_is_caffenet_s_fc6_behind_a_pooling_of_stride_2() -> None:
    """At 227 pixels, in the middle of the map, where the dilated layer reads the 6 x 6 positions of CaffeNet."""
    folded = fold_batch_norms(made_weights("alexnet").backbone)
    with torch.no_grad():
        maps = folded(torch.randn(2, 3, 227, 227))
        pooled = F.max_pool2d(maps["conv5"].relu(), 3, stride=2)
        assert pooled.shape[2:] == (6, 6)
        weight = folded.get_parameter("layers.fc6.conv.weight").flatten(1)
        fc6 = F.linear(pooled.flatten(1), weight, folded.get_parameter("layers.fc6.conv.bias"))
    torch.testing.assert_close(maps["fc6"][:, :, 6, 6], fc6, rtol=1e-4, atol=1e-5)


class _Odd(SequentialBackbone):
    """One layer: a convolution and a batch norm, whose order or use is not the usual one."""

    name: ClassVar[str] = "odd"
    last: ClassVar[str] = "conv1"
    compared: ClassVar[str] = "conv1"
    is_first: ClassVar[bool]

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__(settings)
        self.feature_info = {"conv1": LayerInfo(3, 1)}
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        nn.init.uniform_(self.norm.weight, 1.5, 2)

    def layer_map(self, layer: str, below: Tensor) -> Tensor:
        if self.is_first:
            found: Tensor = self.conv(self.norm(below))
            return found
        x = self.conv(below)
        return x + self.norm(x)  # type: ignore[no-any-return]

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        check_sides(height, width, least=3)


@pytest.mark.parametrize(("is_first", "words"), [(True, "odd, norm"), (False, "serves more than its batch norm")])
def test_a_batch_norm_that_a_convolution_cannot_take_over_is_refused(
    is_first: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Odd, "is_first", is_first, raising=False)
    with pytest.raises(UsageError, match=words):
        fold_batch_norms(_Odd(BackboneSettings()))
