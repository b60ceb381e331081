"""Convolutions of few channels beside torch's own, for the tests on the CPU and for those on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Module = nn.Conv2d | nn.ConvTranspose2d


def assert_equals_torchs(convolve: Callable[[Tensor], Tensor], module: Module, x: Tensor, *, tolerance: float) -> None:
    """Result and all gradients against those of torch's own module in float64 on the CPU.

    Args:
        convolve: computes with the module's parameters.
        module: of a class of torch's, or below one.
        x: (N, C, H, W), channels last.
        tolerance: of the norm of the difference, by the norm of what is expected.
    """
    kind = nn.ConvTranspose2d if isinstance(module, nn.ConvTranspose2d) else nn.Conv2d
    has_bias = module.bias is not None
    arguments = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
    oracle = kind(*arguments, bias=has_bias, dtype=torch.float64)
    oracle.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    leaf = x.detach().clone().requires_grad_()
    double = x.detach().cpu().double().requires_grad_()
    result, expected = convolve(leaf), oracle(double)
    assert result.shape == expected.shape
    # Not around zero: the sum of it, which is the gradient of a bias, would be of the size of its rounding.
    pull = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((result.double() * pull.to(x.device)).sum(), [leaf, *module.parameters()])
    wanted = torch.autograd.grad((expected * pull).sum(), [double, *oracle.parameters()])
    for ours, theirs in zip((result, *found), (expected, *wanted), strict=True):
        assert ours.shape == theirs.shape
        error = (ours.detach().cpu().double() - theirs.detach()).norm()
        assert error <= tolerance * theirs.detach().norm().clamp(min=1e-9), float(error)
