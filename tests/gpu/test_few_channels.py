"""Rearranged convolutions in mixed precision against torch's own ones in full precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from beside_torch import Module, assert_equals_torchs
from nobody_waits import nobody_waits

from fastssl import few_channels
from fastssl.few_channels import FewInputsConv2d, FewOutputsConvTranspose2d

# As in the paper's step: channels and sides of what they read.
LAYERS: dict[str, tuple[Callable[[], Module], tuple[int, ...]]] = {
    "conv1": (lambda: FewInputsConv2d(3, 96, 11, stride=4, padding=2), (2, 3, 227, 227)),
    "depth": (lambda: FewOutputsConvTranspose2d(64, 1, 3, stride=2), (2, 64, 113, 113)),
    "normal": (lambda: FewOutputsConvTranspose2d(64, 3, 3, stride=2), (2, 64, 113, 113)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_layers_equal_torch_s(gpu: torch.device, name: str, amp_dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    module = make().to(gpu, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(shape, generator=generator) - 0.3).to(gpu, memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=amp_dtype):
        result = module(x)
        assert result.dtype == amp_dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert_equals_torchs(module, module, x, tolerance=0.01)
        with nobody_waits(gpu):
            module(x).float().sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_they_are_rearranged_with_channels_last_alone(
    gpu: torch.device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = list[str]()
    for form in ("space_to_depth_convolution", "sub_pixel_convolution"):
        monkeypatch.setattr(few_channels, form, lambda x, *_, form=form: used.append(form))
    make, shape = LAYERS[name]
    module = make().to(gpu, memory_format=torch.channels_last)
    module(torch.zeros(shape, device=gpu))
    assert not used
    module(torch.zeros(shape, device=gpu).contiguous(memory_format=torch.channels_last))
    assert used == ["space_to_depth_convolution" if name == "conv1" else "sub_pixel_convolution"]
