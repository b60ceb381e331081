"""AlexNet: sizes, counts and values against the protocol's table and a plain functional AlexNet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastssl.backbones.alexnet import AlexNet
from fastssl.errors import ConfigError
from fastssl.methods.cross_domain import ModelConfig, build_networks

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
PUBLISHED = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc6": 4096, "fc7": 4096}
NARROW = ModelConfig(width=0.1, fc_channels=24, head_channels=8, init_gain=1.0)


def _narrow(**settings_: str) -> AlexNet:
    return build_networks(NARROW.model_copy(update=settings_), seed=1).backbone


def _reference(backbone: AlexNet, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """AlexNet written out: (before, after the ReLU) of every layer."""
    state = backbone.state_dict()
    out: dict[str, tuple[Tensor, Tensor]] = {}

    def layer(name: str, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        weight, bias = state[f"layers.{name}.conv.weight"], state[f"layers.{name}.conv.bias"]
        y = F.conv2d(x, weight, bias, stride, padding, dilation)
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (state[f"layers.{name}.norm.{key}"][:, None, None] for key in ("weight", "bias"))
        y = (y - mean) / (variance + 1e-5).sqrt() * scale + shift
        out[name] = (y, y.clamp(min=0))
        return out[name][1]

    x = F.max_pool2d(layer("conv1", image, stride=4, padding=2), 3, stride=2)
    x = F.max_pool2d(layer("conv2", x, padding=2), 3, stride=2)
    x = layer("conv4", layer("conv3", x, padding=1), padding=1)
    x = F.max_pool2d(layer("conv5", x, padding=1), 3, stride=1, padding=1)
    layer("fc7", layer("fc6", x, padding=5, dilation=2))
    return out


def test_the_published_network_has_58_3_million_parameters() -> None:
    kernels = {"conv1": 11, "conv2": 5, "conv3": 3, "conv4": 3, "conv5": 3, "fc6": 6, "fc7": 1}
    expected, inputs = 0, 3
    for name, outputs in PUBLISHED.items():
        expected += outputs * (inputs * kernels[name] ** 2 + 1) + 2 * outputs  # weights, bias, batch norm
        inputs = outputs
    with torch.device("meta"):
        backbone = AlexNet(ModelConfig())
    assert {name: info.channels for name, info in backbone.feature_info.items()} == PUBLISHED
    assert [info.stride for info in backbone.feature_info.values()] == [4, 8, 16, 16, 16, 16, 16]
    assert sum(p.numel() for p in backbone.parameters()) == expected
    assert round(expected / 1e6, 1) == 58.3


def test_maps_of_the_published_network_at_227_pixels() -> None:
    with torch.device("meta"):
        features = AlexNet(ModelConfig())(torch.empty(2, 3, 227, 227))
    sides = {"conv1": 56, "conv2": 27, "conv3": 13, "conv4": 13, "conv5": 13, "fc6": 13, "fc7": 13}
    assert list(features) == list(LAYERS)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        name: (2, PUBLISHED[name], side, side) for name, side in sides.items()
    }


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40))
def test_every_size_16k_plus_3_fits(rows: int, columns: int) -> None:
    with torch.device("meta"):
        features = AlexNet(NARROW)(torch.empty(2, 3, 16 * rows + 3, 16 * columns + 3))
    for name, x in features.items():
        # 4 k, then twice a 3 x 3 pooling of stride 2: 2 k - 1, k - 1
        expected = {"conv1": (4 * rows, 4 * columns), "conv2": (2 * rows - 1, 2 * columns - 1)}
        assert tuple(x.shape[-2:]) == expected.get(name, (rows - 1, columns - 1))


@pytest.mark.parametrize(("height", "width"), [(224, 227), (227, 226), (256, 256), (19, 19), (3, 35)])
def test_other_sizes_are_refused_by_name(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)data\.size.*{height} x {width}.*16 k \+ 3"):
        _narrow()(torch.zeros(1, 3, height, width))


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)conv6.*conv5, fc6"):
        _narrow()(torch.zeros(1, 3, 35, 35), until="conv6")


@pytest.mark.parametrize("adapted_feature", ["pre_relu", "post_relu"])
def test_values_are_those_of_alexnet_written_out(adapted_feature: str) -> None:
    backbone = _narrow(adapted_feature=adapted_feature).double()
    image = torch.randn(2, 3, 67, 83, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = backbone(image)
    for name, (before, after) in _reference(backbone, image).items():
        returned_after = adapted_feature == "post_relu" or name == "fc7"
        torch.testing.assert_close(features[name], after if returned_after else before, rtol=1e-6, atol=1e-8)
        assert (features[name].min() >= 0) == returned_after


def test_fc6_is_caffenets_layer_on_pooling_of_stride_2() -> None:
    # The published evaluation moves these weights into a CaffeNet, whose fc6 sees a 6 x 6 map of stride 2.
    backbone = _narrow(adapted_feature="post_relu").double().eval()
    image = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = backbone(image)
    pooled = F.max_pool2d(features["conv5"], 3, stride=2).flatten(1)
    assert pooled.shape == (2, backbone.feature_info["conv5"].channels * 36)
    fc6 = backbone.get_submodule("layers.fc6.conv")
    assert isinstance(fc6, nn.Conv2d)
    dense = F.linear(pooled, fc6.weight.flatten(1), fc6.bias)
    norm = backbone.get_submodule("layers.fc6.norm")
    expected = norm(dense[:, :, None, None]).clamp(min=0)[:, :, 0, 0]
    torch.testing.assert_close(features["fc6"][:, :, 6, 6], expected)


@pytest.mark.parametrize("until", [*LAYERS, None])
@pytest.mark.parametrize("adapted_feature", ["pre_relu", "post_relu"])
def test_nothing_deeper_than_until_is_computed(until: str | None, adapted_feature: str) -> None:
    backbone = _narrow(adapted_feature=adapted_feature)
    image = torch.randn(2, 3, 51, 51, generator=torch.Generator().manual_seed(0))
    everything = backbone(image)
    entered: list[str] = []
    for name, module in backbone.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    features = backbone(image, until=until)
    expected = LAYERS[: LAYERS.index(until) + 1] if until else LAYERS
    assert tuple(features) == expected
    assert entered == [f"layers.{name}.{part}" for name in expected for part in ("conv", "norm")]
    for name in expected:
        assert torch.equal(features[name], everything[name])


@pytest.mark.parametrize("adapted_feature", ["pre_relu", "post_relu"])
def test_every_map_can_be_differentiated(adapted_feature: str) -> None:
    # A ReLU that overwrote what a loss or a batch norm still needs would make autograd fail here.
    features = _narrow(adapted_feature=adapted_feature)(torch.randn(2, 3, 51, 51))
    gradients = torch.autograd.grad(sum(x.square().sum() for x in features.values()), list(features.values()))
    assert all(g.isfinite().all() for g in gradients)


@settings(max_examples=30, deadline=None)
@given(width=st.floats(0.01, 3))
def test_width_scales_to_multiples_of_eight(width: float) -> None:
    with torch.device("meta"):
        info = AlexNet(ModelConfig(width=width, fc_channels=20)).feature_info
    channels = {name: layer.channels for name, layer in info.items()}
    for name, published in PUBLISHED.items():
        if name.startswith("fc"):
            assert channels[name] == 20
        else:
            assert channels[name] % 8 == 0
            assert channels[name] == 8 or abs(channels[name] - published * width) <= 4


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_half_float_images_are_taken_in_the_weights_precision(weights: torch.dtype) -> None:
    backbone = _narrow().to(weights)
    image = torch.randn(2, 3, 35, 35, generator=torch.Generator().manual_seed(0)).half()
    features = backbone(image)
    assert {x.dtype for x in features.values()} == {weights}
    assert torch.equal(features["conv1"], backbone(image.to(weights))["conv1"])


@pytest.mark.parametrize("channels_last", [False, True])
def test_half_float_images_need_no_full_precision_where_it_is_mixed(channels_last: bool) -> None:
    """The same features, bit for bit, and the first convolution gets the image as it came."""
    backbone, got = _narrow().eval(), list[Tensor]()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    backbone.to(memory_format=layout)
    image = torch.randn(2, 3, 35, 35, generator=torch.Generator().manual_seed(0)).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(backbone, backend="eager", fullgraph=True)(image)
        backbone.get_submodule("layers.conv1.conv").register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
        features, expected = backbone(image), backbone(image.float())
    assert [x.dtype for x in got] == [torch.float16, torch.float32]
    assert all(x.is_contiguous(memory_format=layout) for x in got)
    for name, x in expected.items():
        assert torch.equal(features[name], x)
        assert torch.equal(compiled[name], x)
