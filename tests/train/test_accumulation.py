"""Steps of several batches, shortened gradients, schedules and the mean of the weights, by closed forms."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_process import Recording, config, first_batches, gradients, part
from small_runs import assert_same, quiet, settings, state

from fastssl.config import OptimSettings
from fastssl.methods import METHODS, find_method
from fastssl.telemetry import read_metrics
from fastssl.train import load_trained, resume_run, start_run
from fastssl.train.average import WeightAverage
from fastssl.train.trainer import lr_factor

CPU = torch.device("cpu")
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(name: str) -> None:
    small = config(name, 8)
    joint = first_batches(small)
    halves = [part(joint, rows) for rows in (slice(4), slice(4, 8))]
    alone = [gradients(small, half) for half in halves]
    context = Recording(small, CPU)
    step = find_method(name)(small, context)
    before = [weight.clone() for weight in step.networks.parameters()]
    for number, half in enumerate(halves):
        assert same_weights(step, before), "no update before the last batch"
        with context.part(number, 2):
            step(half)
    assert not same_weights(step, before)
    assert len(context.gradients) == len(alone[0])
    for found, first, second in zip(context.gradients, *alone, strict=True):
        scale = max(float(first.abs().max()), float(second.abs().max()))
        torch.testing.assert_close(found, (first + second) / 2, rtol=1e-4, atol=1e-5 * scale)


def same_weights(step: Any, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, step.networks.parameters(), strict=True))


@every_method
@pytest.mark.parametrize("amp", [[], ["train.amp=true", "train.amp_dtype=float16"]])
def test_a_long_gradient_is_shortened_to_the_norm_that_is_asked_for(name: str, amp: list[str]) -> None:
    """All weights of an optimizer together; the direction stays."""
    small, clipped = (config(name, 4, *amp, f"optim.clip_norm={norm}") for norm in (0, 1e-3))
    batches = first_batches(small)
    norms = []
    for one in (small, clipped):
        context = Norms(one, CPU)
        context.scaler.load_state_dict({**context.scaler.state_dict(), "scale": 4.0} if amp else {})
        find_method(name)(one, context)(batches)
        norms.append(context.norms)
    assert all(norm > 2e-3 for norm in norms[0])
    assert norms[1] == pytest.approx([1e-3] * len(norms[0]), rel=1e-3)


class Norms(Recording):
    """Keeps the norm of the gradients that each optimizer's step gets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norms: list[float] = []

    def trains(self, optimizer: Any) -> None:
        super().trains(optimizer)
        optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer: Any, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        # The fused forms divide by the scale in their step, unless it was done for the norm.
        scale = getattr(optimizer, "grad_scale", None)
        found = torch.stack([grad.double().norm() for grad in grads]).norm()
        self.norms.append(float(found if scale is None else found / scale))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, coded_synthetic: Path, coded_real: Path) -> Path:
    """A run with all of it at once."""
    out = tmp_path_factory.mktemp("everything") / "run"
    words = ["train.accumulate=2", "train.steps=6", "train.checkpoint_every=3", "train.log_every=1"]
    words += ["optim.clip_norm=1.0", "optim.average_decay=0.9", "optim.schedule=cosine", "optim.warmup_steps=2"]
    start_run(settings(coded_synthetic, coded_real, *words), out, quiet)
    return out


def test_it_goes_on_after_a_kill_as_if_undisturbed(everything: Path, tmp_path: Path) -> None:
    shutil.copytree(everything, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000006.pt").unlink()
    resume_run(tmp_path / "run", quiet)
    assert_same(state(everything, 6), state(tmp_path / "run", 6))


def test_positions_count_every_batch(everything: Path) -> None:
    assert state(everything, 6)["positions"] == {"synthetic": 6 * 2 * 4, "real": 6 * 2 * 3}


def test_what_is_evaluated_is_the_mean_of_the_weights(everything: Path) -> None:
    saved, trained = state(everything, 6), load_trained(everything)
    weights = dict(trained.method.networks.named_parameters())
    assert weights.keys() == saved["average"].keys()
    assert all(torch.equal(weight, saved["average"][name]) for name, weight in weights.items())
    assert any(
        not torch.equal(mean, saved["backbone"][name.removeprefix("backbone.")])
        for name, mean in saved["average"].items()
        if name.startswith("backbone.")
    )


def test_the_log_has_the_schedule_s_learning_rates(everything: Path) -> None:
    rates = [line["lr"] for line in read_metrics(everything)]
    expected = [1 / 3, 2 / 3, 1, *((1 + np.cos(np.pi * np.arange(1, 4) / 4)) / 2)]
    np.testing.assert_allclose(np.array(rates) / rates[2], expected, rtol=1e-6)


def test_the_mean_of_the_weights_is_the_sum_by_the_book() -> None:
    """After each step; the decay is reached at step 81."""
    layer = torch.nn.Linear(3, 2)
    expected = layer.weight.detach().double().numpy().copy()
    average = WeightAverage(layer, 0.9)
    rng = np.random.default_rng(0)
    for step in range(1, 100):
        values = rng.normal(size=(2, 3)).astype(np.float32)
        layer.weight.data.copy_(torch.from_numpy(values))
        average.add(step)
        decay = 0.9 if step > 80 else (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * values
        np.testing.assert_allclose(average.state_dict()["weight"].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["drops", "cosine", "constant"])
def test_a_warm_up_grows_by_equal_parts_and_then_leaves_the_schedule_alone(schedule: Any) -> None:
    optim = OptimSettings(schedule=schedule, warmup_steps=9, drop_at=(0.5,), drop_factor=0.1)
    factors = [lr_factor(optim, step, 100) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    after = {
        "drops": [1.0 if step < 50 else 0.1 for step in range(9, 100)],
        "cosine": [(1 + math.cos(math.pi * (step - 9) / 91)) / 2 for step in range(9, 100)],
        "constant": [1.0] * 91,
    }
    np.testing.assert_allclose(factors[9:], after[schedule])
