"""Optimizers: closed forms, states that travel, and what is expected of apex."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from small_steps import CPU, batches, method, same, small_config
from torch.optim import SGD, Optimizer

from fastssl.config import OptimSettings
from fastssl.errors import DeviceError, UsageError
from fastssl.optimizers import adam, restore, sgd

GPU = torch.device("cuda")
APEX = OptimSettings(backend="apex")


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(64))


def test_state_of_another_form_goes_on_in_this_one_s() -> None:
    """What was saved by an optimizer that is not fused goes on as if it had always been fused."""
    step, other = (method(small_config()) for _ in range(2))
    step(batches(0))
    state = copy.deepcopy(step.state_dict())
    for name in ("task_optimizer", "discriminator_optimizer"):
        for group in state[name]["param_groups"]:
            group["fused"] = None
    other.load_state_dict(state)
    for optimizer in (other.task_optimizer, other.discriminator_optimizer):
        assert optimizer is not None
        assert [group["fused"] for group in optimizer.param_groups] == [True]
    step(batches(1))
    other(batches(1))
    assert same(step.networks, other.networks)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_skipped_first_step_leaves_no_momentum(loaded: bool) -> None:
    """The first step is skipped for infinite gradients, and the second begins from rest."""
    one = weight()
    optimizer = sgd([one], OptimSettings(), CPU, lr=0.1, momentum=0.9, weight_decay=0.0)
    if loaded:
        restore(optimizer, SGD([weight()], lr=0.1, momentum=0.9).state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (float("inf"), 1.0, 1.0):
        one.grad = torch.full_like(one, gradient) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    # One step of 0.1, one of 0.1 * (1 + 0.9).
    torch.testing.assert_close(one.detach(), torch.full((64,), 0.71))


def test_adam_s_first_step_is_as_long_as_the_learning_rate() -> None:
    one = weight()
    one.grad = torch.linspace(0.5, 2, 64)
    adam([one], OptimSettings(lr=0.1), CPU, betas=(0.5, 0.999)).step()
    torch.testing.assert_close(one.detach(), torch.full((64,), 0.9))


class StandIn(Optimizer):
    """Takes what apex's optimizers take, as its repository has them, and computes nothing."""

    def __init__(self, params: Any, **values: Any) -> None:
        self.values = values
        super().__init__(params, values)

    def zero_grad(self) -> None:  # type: ignore[override]
        """Without `set_to_none`, as apex has it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in apex's place."""
    optimizers = ModuleType("apex.optimizers")
    vars(optimizers).update(FusedAdam=StandIn, FusedSGD=StandIn)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.mark.usefixtures("apex")
def test_apex_is_asked_for_adam_and_not_for_adamw() -> None:
    optimizer = adam([weight()], APEX, GPU, betas=(0.5, 0.999))
    assert isinstance(optimizer, StandIn)
    assert optimizer.values == {"lr": 1e-3, "betas": (0.5, 0.999), "weight_decay": 0.0, "adam_w_mode": False}
    optimizer.zero_grad()
    other = adam([weight()], APEX, GPU, betas=(0.9, 0.999))
    restore(other, optimizer.state_dict())
    assert other.param_groups[0]["betas"] == (0.5, 0.999)


def apex_s_form(state: dict[str, Any]) -> dict[str, Any]:
    """A state of torch's Adam as apex's has it: the steps are the group's, and forms have no name."""
    steps = {int(one.pop("step")) for one in state["state"].values()}
    for group in state["param_groups"]:
        (group["step"],) = steps
        for name in ("fused", "foreach"):
            del group[name]
    return state


@pytest.mark.usefixtures("apex")
def test_adam_goes_on_with_the_other_library_s_state() -> None:
    """By the very next step: its correction of the bias depends on the steps made."""
    weights = [weight() for _ in range(2)]
    first, second = (adam([one], OptimSettings(lr=0.1), CPU, betas=(0.5, 0.999)) for one in weights)
    for gradient in (1.0, 2.0):
        weights[0].grad = torch.full_like(weights[0], gradient)
        first.step()
    of_apex = apex_s_form(copy.deepcopy(first.state_dict()))
    weights[1].data.copy_(weights[0].data)
    restore(second, of_apex)
    for optimizer, one in zip((first, second), weights, strict=True):
        one.grad = torch.full_like(one, 0.5)
        optimizer.step()
    assert torch.equal(*weights)
    assert "step" not in second.param_groups[0]
    back = adam([weight()], APEX, GPU, betas=(0.9, 0.999))
    restore(back, second.state_dict())
    assert back.param_groups[0]["step"] == 3


@pytest.mark.usefixtures("apex")
def test_apex_is_asked_for_sgd_with_its_momentum() -> None:
    optimizer = sgd([weight()], APEX, GPU, lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert isinstance(optimizer, StandIn)
    assert optimizer.values == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}


@pytest.mark.usefixtures("apex")
def test_apex_needs_a_gpu() -> None:
    with pytest.raises(DeviceError, match="CUDA GPU"):
        adam([weight()], APEX, CPU, betas=(0.5, 0.999))


@pytest.mark.parametrize("is_another_project", [False, True])
def test_apex_that_is_not_there_is_told_with_its_repository(
    is_another_project: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    if is_another_project:
        monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    with pytest.raises(UsageError, match="another project") as refused:
        adam([weight()], APEX, GPU, betas=(0.5, 0.999))
    assert "github.com/NVIDIA/apex" in str(refused.value)
