"""Two streams against one, bit for bit; and the step on the GPU against the step on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_steps import after_steps, same, small_config


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layer", ["conv1", "conv5", "fc6"])
@pytest.mark.parametrize("amp", ["false", "true"])
def test_two_streams_equal_one(gpu: torch.device, layer: str, amp: str) -> None:
    settings = [f"model.adapted_layer={layer}", f"train.amp={amp}", "optim.pool_size=6"]
    one, _ = after_steps(small_config(*settings, "train.streams=false"), steps=6, device=gpu)
    two, _ = after_steps(small_config(*settings, "train.streams=true"), steps=6, device=gpu)
    assert same(one, two)


def test_step_equals_the_step_on_the_cpu(gpu: torch.device) -> None:
    settings = small_config("train.tf32=false")
    torch.backends.cudnn.allow_tf32 = False
    on_cpu, cpu_losses = after_steps(settings, steps=1)
    on_gpu, gpu_losses = after_steps(settings, steps=1, device=gpu)
    for name, loss in cpu_losses[0].items():
        torch.testing.assert_close(gpu_losses[0][name].cpu(), loss, rtol=1e-3, atol=1e-4, msg=name)
    assert {name for name, _ in on_cpu.named_parameters()} == {name for name, _ in on_gpu.named_parameters()}
