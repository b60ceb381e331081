"""Rearranged convolutions against torch's own ones, by themselves and inside the networks that have them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from beside_torch import Module, assert_equals_torchs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fastssl import few_channels
from fastssl.few_channels import (
    FewInputsConv2d,
    FewOutputsConvTranspose2d,
    space_to_depth_convolution,
    sub_pixel_convolution,
)
from fastssl.methods.cross_domain import ModelConfig, Networks, build_networks

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def rearranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rearranged way, as on a GPU with channels last."""
    monkeypatch.setattr(few_channels, "_is_faster_rearranged", lambda _: True)


def rearranged_form(module: Module, x: Tensor) -> Tensor:
    assert not isinstance(module.padding, str)
    form = sub_pixel_convolution if isinstance(module, nn.ConvTranspose2d) else space_to_depth_convolution
    return form(x, module.weight, module.bias, module.stride, module.padding)


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) - 0.3
    return x.contiguous(memory_format=torch.channels_last)


pairs = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kernel=pairs, stride=pairs, dtype=st.sampled_from(list(TOLERANCES)), bias=st.booleans())
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_both_forms_equal_torch_s(
    kind: type[Module],
    data: st.DataObject,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dtype: torch.dtype,
    bias: bool,
) -> None:
    """With kernels smaller than the stride, rows that no kernel reaches, and rectangles of all of these."""
    inputs, outputs = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    padding = tuple(data.draw(st.integers(0, size - 1)) for size in kernel)
    sides = [data.draw(st.integers(size, size + 9)) for size in kernel]  # of which both forms leave something
    torch.manual_seed(0)
    module = kind(inputs, outputs, kernel, stride, padding, bias=bias, dtype=dtype)
    x = random((2, inputs, *sides), dtype)
    assert_equals_torchs(lambda x: rearranged_form(module, x), module, x, tolerance=TOLERANCES[dtype])


PAPERS = {
    "conv1": (FewInputsConv2d(3, 8, 11, stride=4, padding=2), 83),
    "conv1 of Fast R-CNN": (FewInputsConv2d(3, 8, 11, stride=4, padding=5), 80),
    "depth": (FewOutputsConvTranspose2d(64, 1, 3, stride=2), 13),
    "normal": (FewOutputsConvTranspose2d(64, 3, 3, stride=2), 13),
}


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("amp", [False, True])
def test_the_paper_s_layers_in_both_precisions(rearranged: None, name: str, amp: bool) -> None:
    module, side = PAPERS[name]
    x = random((2, module.in_channels, side, side), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        result = module(x)
        assert result.dtype == (torch.bfloat16 if amp else torch.float32)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert_equals_torchs(module, module, x, tolerance=0.01 if amp else 1e-5)


@pytest.mark.parametrize("name", PAPERS)
def test_a_layer_goes_through_torch_s_tools(rearranged: None, name: str) -> None:
    """torch.compile in one piece, with a gradient; calls with other parameters; no content; copies."""
    module, side = PAPERS[name]
    x = random((2, module.in_channels, side, side), torch.float32)
    expected = module(x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    gradients = [torch.autograd.grad(form(x).square().sum(), module.weight)[0] for form in (module, compiled)]
    torch.testing.assert_close(*gradients)
    twice = {key: 2 * value for key, value in module.state_dict().items()}
    torch.testing.assert_close(functional_call(module, twice, x), 2 * expected)
    assert copy.deepcopy(module).to("meta")(x.to("meta")).shape == expected.shape
    assert module.state_dict().keys() == {"weight", "bias"}


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_cpu_computes_as_ever(name: str, layout: torch.memory_format) -> None:
    """Bit for bit, and the sizes of a transposed convolution can be asked for."""
    module, side = PAPERS[name]
    x = random((2, module.in_channels, side, side), torch.float32).contiguous(memory_format=layout)
    if isinstance(module, nn.ConvTranspose2d):
        expected = F.conv_transpose2d(x, module.weight, module.bias, module.stride)
        assert module(x, output_size=[2 * side + 2, 2 * side + 1]).shape[2:] == (2 * side + 2, 2 * side + 1)
    else:
        assert not isinstance(module.padding, str)
        expected = F.conv2d(x, module.weight, module.bias, module.stride, module.padding)
    assert torch.equal(module(x), expected)


def passes(networks: Networks, image: Tensor) -> dict[str, Tensor]:
    """Predictions, and the gradients of their sum of squares, of the image and of all parameters."""
    image = image.clone().requires_grad_()
    predictions = networks.predict(image)
    total = torch.stack([x.double().square().sum() for x in predictions.values()]).sum()
    names = [name for name, _ in networks.named_parameters() if not name.startswith("discriminator")]
    gradients = torch.autograd.grad(total, [image, *map(networks.get_parameter, names)])
    predictions = {task: x.detach() for task, x in predictions.items()}
    return predictions | dict(zip(["image", *names], gradients, strict=True))


def test_networks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = build_networks(ModelConfig(width=0.1, fc_channels=24, head_channels=8, init_gain=1.0), seed=1)
    networks = networks.double().eval().to(memory_format=torch.channels_last)
    image = random((2, 3, 83, 83), torch.float64)
    expected = passes(networks, image)
    used = []
    monkeypatch.setattr(few_channels, "_is_faster_rearranged", lambda x: not used.append(tuple(x.shape[1:])))
    found = passes(networks, image)
    assert used == [(3, 83, 83)] + 3 * [(8, 41, 41)]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-6 if name == "normal" else 1e-9  # normals are float32
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=1e-9 * float(value.abs().max()), msg=name)
