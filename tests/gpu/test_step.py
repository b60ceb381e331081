"""Two streams against one, bit for bit; and the step on the GPU against the step on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_steps import after_steps, batches, same, small_config

from fastssl.models import build_networks
from fastssl.train.step import TrainingStep


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layer", ["conv1", "conv5", "fc6"])
@pytest.mark.parametrize("amp", ["false", "true"])
def test_two_streams_equal_one(gpu: torch.device, layer: str, amp: str) -> None:
    settings = [f"model.adapted_layer={layer}", f"train.amp={amp}", "optim.pool_size=6"]
    one, _ = after_steps(small_config(*settings, "train.streams=false"), steps=6, device=gpu)
    one_again, _ = after_steps(small_config(*settings, "train.streams=false"), steps=6, device=gpu)
    assert same(one, one_again)
    two, _ = after_steps(small_config(*settings, "train.streams=true"), steps=6, device=gpu)
    assert same(one, two)


def test_step_equals_the_step_on_the_cpu(gpu: torch.device) -> None:
    settings = small_config()
    _, cpu_losses = after_steps(settings, steps=1)
    _, gpu_losses = after_steps(settings, steps=1, device=gpu)
    for name, loss in cpu_losses[0].items():
        torch.testing.assert_close(gpu_losses[0][name].cpu(), loss, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_the_host_does_not_wait_in_a_step(gpu: torch.device, amp_dtype: str) -> None:
    settings = small_config("train.amp=true", f"train.amp_dtype={amp_dtype}", "optim.pool_size=6")
    step = TrainingStep(build_networks(settings.model, seed=1).to(gpu), settings, gpu)
    synthetic, real = batches(0, gpu)
    # The first step makes the optimizers' state.
    step(synthetic, real)
    torch.cuda.synchronize(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(synthetic, real)
    finally:
        torch.cuda.set_sync_debug_mode("default")
