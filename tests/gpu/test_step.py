"""Two streams against one, bit for bit; and the step on the GPU against the step on the CPU."""

from __future__ import annotations

import pytest
import torch
from nobody_waits import nobody_waits
from small_steps import (
    TOO_LARGE,
    after_steps,
    assert_a_step_of_infinite_gradients_is_skipped,
    assert_two_streams_equal_one,
    batches,
    method,
    small_config,
)


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch, torch_as_it_was: None) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("layer", ["conv1", "conv5", "fc6"])
@pytest.mark.parametrize("amp", ["false", "true"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_two_streams_equal_one(gpu: torch.device, layer: str, amp: str, channels_last: bool) -> None:
    settings = small_config(f"model.adapted_layer={layer}", f"train.amp={amp}", "optim.pool_size=6")
    assert_two_streams_equal_one(settings, gpu, channels_last=channels_last)


def test_two_streams_equal_one_where_d_is_updated_first(gpu: torch.device) -> None:
    assert_two_streams_equal_one(small_config("optim.order=discriminator_first", "optim.pool_size=6"), gpu)


@pytest.mark.parametrize("amp", ["false", "true"])
@pytest.mark.parametrize("norm", ["joint", "none", "instance", "spectral"])
def test_two_streams_equal_one_with_the_adversary_s_other_forms(gpu: torch.device, norm: str, amp: str) -> None:
    """D's own pass moves the vectors of a spectral norm while B meets copies of them."""
    words = [f"model.discriminator_norm={norm}", "model.passes=joint", "loss.pushed=both", f"train.amp={amp}"]
    assert_two_streams_equal_one(small_config("data.size=99", "optim.pool_size=6", *words), gpu)


def test_mixed_precision_leaves_singular_values_alone(gpu: torch.device) -> None:
    """A GPU's mixed precision rounds products of matrices and vectors, which a CPU's does not."""
    discriminator = method(small_config("model.discriminator_norm=spectral"), gpu).networks.discriminator
    assert discriminator is not None
    expected = discriminator.eval().layers[0].weight
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(discriminator.layers[0].weight, expected)


def test_two_streams_equal_one_at_the_paper_s_size(gpu: torch.device) -> None:
    """There fc6 has as many positions as in the paper."""
    settings = small_config("data.size=227", "model.adapted_layer=fc6", "train.amp=true", "optim.pool_size=6")
    assert_two_streams_equal_one(settings, gpu, channels_last=True)


@pytest.mark.parametrize("scale", [1.0, TOO_LARGE])
def test_two_streams_equal_one_where_steps_are_skipped(gpu: torch.device, scale: float) -> None:
    settings = small_config("train.amp=true", "train.amp_dtype=float16", "optim.pool_size=6")
    assert_two_streams_equal_one(settings, gpu, scale=scale)


def test_a_step_of_infinite_gradients_is_skipped(gpu: torch.device) -> None:
    assert_a_step_of_infinite_gradients_is_skipped(gpu)


def test_step_equals_the_step_on_the_cpu(gpu: torch.device) -> None:
    settings = small_config()
    _, cpu_losses = after_steps(settings, steps=1)
    _, gpu_losses = after_steps(settings, steps=1, device=gpu)
    for name, loss in cpu_losses[0].items():
        torch.testing.assert_close(gpu_losses[0][name].cpu(), loss, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_the_host_does_not_wait_in_a_step(gpu: torch.device, amp_dtype: str) -> None:
    settings = small_config("train.amp=true", f"train.amp_dtype={amp_dtype}", "optim.pool_size=6")
    step, made = method(settings, gpu), batches(0, gpu)
    # The first step makes the optimizers' state, and both fill the pools.
    for _ in range(2):
        step(made)
    with nobody_waits(gpu):
        step(made)
