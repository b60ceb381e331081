"""Heads: sizes and counts against the protocol, values against transposed convolutions written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.backbones.alexnet import AlexNet
from fastssl.batch import PLANES, Task
from fastssl.errors import ConfigError
from fastssl.layers import build_heads
from fastssl.methods import load_config
from fastssl.methods.cross_domain import ModelConfig, Networks, build_networks

NARROW = ModelConfig(width=0.1, fc_channels=24, head_channels=8, init_gain=1.0)


def _features(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"fc7": torch.randn(2, 24, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)}


def test_the_published_heads_have_7_5_million_parameters() -> None:
    shared = (4096 * 9 + 1) * 64 + (64 * 9 + 1) * 64 + (64 * 25 + 1) * 64 + 3 * 2 * 64
    expected = 3 * shared + (1 + 1 + 3) * (64 * 9 + 1)
    with torch.device("meta"):
        heads = build_heads(AlexNet(ModelConfig()), PLANES, 64, shortest_normal=1e-4)
    assert sum(p.numel() for p in heads.parameters()) == expected
    assert round(expected / 1e6, 1) == 7.5


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40))
def test_one_output_per_input_pixel(rows: int, columns: int) -> None:
    height, width = 16 * rows + 3, 16 * columns + 3
    with torch.device("meta"):
        heads = build_heads(AlexNet(NARROW), PLANES, 8, shortest_normal=1e-4)
        predictions = heads({"fc7": torch.empty(1, 24, rows - 1, columns - 1)}, height, width)
    assert {task: tuple(x.shape) for task, x in predictions.items()} == {
        "depth": (1, 1, height, width),
        "normal": (1, 3, height, width),
        "edge": (1, 1, height, width),
    }


@pytest.mark.parametrize("tasks", [("edge",), ("normal", "depth"), ("depth", "normal", "edge")])
def test_one_head_per_task_and_none_shared(tasks: tuple[Task, ...]) -> None:
    heads = build_networks(NARROW.model_copy(update={"tasks": tasks}), seed=1).heads
    predictions = heads(_features(), 83, 83)
    assert set(predictions) == set(tasks)
    for task in tasks:
        gradients = torch.autograd.grad(
            predictions[task][:, :1].sum(), list(heads.parameters()), allow_unused=True, retain_graph=True
        )
        names = [name for name, _ in heads.named_parameters()]
        touched = {n.split(".")[1] for n, g in zip(names, gradients, strict=True) if g is not None}
        assert touched == {task}


def test_values_are_those_of_transposed_convolutions_written_out() -> None:
    heads = build_networks(NARROW, seed=1).heads.double()
    features = _features(torch.float64)
    predictions = heads(features, 83, 83)
    for task in ("depth", "normal", "edge"):
        state = {name: x.detach() for name, x in heads.get_submodule(f"heads.{task}").named_parameters()}
        x = features["fc7"]
        for i in (0, 3, 6):
            x = F.conv_transpose2d(x, state[f"{i}.weight"], state[f"{i}.bias"], stride=2)
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            scale, shift = (state[f"{i + 1}.{key}"][:, None, None] for key in ("weight", "bias"))
            x = ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)
        x = F.conv_transpose2d(x, state["9.weight"], state["9.bias"], stride=2)
        if task == "normal":
            x = (x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-4)).float()
        torch.testing.assert_close(predictions[task], x)
        assert task == "normal" or x.min() < 0  # raw: neither a depth nor a probability


def test_normals_are_unit_vectors_in_float32_under_mixed_precision() -> None:
    heads = build_networks(NARROW.model_copy(update={"head_channels": 64}), seed=1).heads
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = heads(_features(), 83, 83)
    assert predictions["normal"].dtype == torch.float32
    assert predictions["depth"].dtype == torch.bfloat16
    length = predictions["normal"].norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shortest", [1e-4, 1e-12])
def test_a_normal_of_length_0_has_a_bounded_gradient(shortest: float) -> None:
    heads = build_networks(NARROW.model_copy(update={"shortest_normal": shortest}), seed=1).heads
    bias = heads.get_parameter("heads.normal.9.bias")
    with torch.no_grad():
        heads.get_parameter("heads.normal.9.weight").zero_()
    normal = heads(_features(), 83, 83)["normal"]
    (gradient,) = torch.autograd.grad(normal.mean((0, 2, 3)).sum(), bias)
    assert not normal.any()
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / shortest), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("shortest", "expected"), [(1e-4, 0.01), (1e-6, 1.0), (1e-12, 1.0)])
def test_a_normal_shorter_than_the_shortest_is_divided_by_that(shortest: float, expected: float) -> None:
    heads = build_networks(NARROW.model_copy(update={"shortest_normal": shortest}), seed=1).heads
    with torch.no_grad():  # the raw normal is the bias, 1e-6 long
        heads.get_parameter("heads.normal.9.weight").zero_()
        heads.get_parameter("heads.normal.9.bias").copy_(1e-6 * torch.tensor([0.0, 0.6, -0.8]))
    normal = heads(_features(), 83, 83)["normal"]
    direction = torch.tensor([0.0, 0.6, -0.8])[None, :, None, None]
    torch.testing.assert_close(normal, (expected * direction).expand_as(normal))


LIGHT = NARROW.model_copy(update={"heads": "light"})


def test_light_heads_are_what_their_description_says() -> None:
    """Written out: 1 x 1, twice up, joined and 3 x 3, then blocks of 4 x 4 pixels, three more of which are repeated."""
    networks = build_networks(LIGHT, seed=1).double()
    features = networks.backbone(torch.randn(2, 3, 83, 83, generator=torch.Generator().manual_seed(0)).double())
    predictions = networks.heads(features, 83, 83)
    for task in ("depth", "edge"):
        head = networks.heads.get_submodule(f"heads.{task}")
        state = dict(head.named_parameters())

        def normed(x: Tensor, name: str, padding: int, state: dict[str, Tensor] = state) -> Tensor:
            x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=padding)
            return F.batch_norm(x, None, None, state[f"{name}.1.weight"], state[f"{name}.1.bias"], training=True).relu()

        x = normed(features["fc7"], "top", 0)
        for step, layer in enumerate(["conv2", "conv1"]):
            skip = features[layer].relu()
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear")
            x = normed(torch.cat([x, skip], dim=1), f"steps.{step}", 1)
        x = F.conv2d(x, state["out.weight"], state["out.bias"], padding=1)
        n, _, h, w = x.shape
        pixels = x.reshape(n, 1, 4, 4, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 1, 4 * h, 4 * w)
        index = (torch.arange(83) - (83 - 4 * h) // 2).clamp(0, 4 * h - 1)
        torch.testing.assert_close(predictions[task], pixels[:, :, index][..., index])


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(3, 20), columns=st.integers(3, 20), form=st.sampled_from(["light", "pyramid", "transposed"]))
def test_each_form_gives_one_output_per_pixel(rows: int, columns: int, form: str) -> None:
    height, width = 16 * rows + 3, 16 * columns + 3
    with torch.device("meta"):
        networks = Networks(NARROW.model_copy(update={"heads": form}))
        predictions = networks.predict(torch.empty(2, 3, height, width))
    assert {task: tuple(x.shape[1:]) for task, x in predictions.items()} == {
        "depth": (1, height, width),
        "normal": (3, height, width),
        "edge": (1, height, width),
    }


def test_skip_heads_that_do_not_fit_are_refused_with_those_that_do() -> None:
    """AlexNet's last two maps have one size, 7 x 7 of 131 pixels, and a transposed convolution doubles the last."""
    with pytest.raises(ConfigError, match=r"do not fit(.|\n)*fc6 of 7 x 7(.|\n)*14 x 14(.|\n)*model\.heads=light"):
        load_config("tiny", overrides=["model.heads=skip", "data.size=131"])
