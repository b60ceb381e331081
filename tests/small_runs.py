"""Small trainings from shards to files, for the tests on the CPU and for those on a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from fastssl.config import Config
from fastssl.methods import load_config
from fastssl.telemetry import read_metrics
from fastssl.train import resume_run, start_run

SMALL = [
    "data.size=67",
    "data.batch_synthetic=4",
    "data.batch_real=3",
    "model.width=0.1",
    "model.fc_channels=32",
    "model.head_channels=8",
    "optim.pool_size=5",
    "train.log_every=2",
    "train.picture_every=100",
]


def quiet(done: int, total: int | None = None, words: str = "") -> None:
    """No progress bar."""


def settings(synthetic: Path, real: Path, *overrides: str) -> Config:
    paths = [f"data.synthetic={synthetic}", f"data.real={real}"]
    return load_config("tiny", overrides=[*SMALL, *paths, *overrides])


def state(run: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)
    return {**content["state"], "ranks": content["ranks"], "positions": content["positions"]}


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, (list, tuple)):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


def assert_resumed_run_ends_as_undisturbed(synthetic: Path, real: Path, tmp_path: Path) -> None:
    """A deterministic run that goes on after its first checkpoint: networks, optimizers and pools, bit for bit."""
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    config = settings(synthetic, real, "train.steps=8", "train.checkpoint_every=4", "train.deterministic=true")
    start_run(config, undisturbed, quiet)
    shutil.copytree(undisturbed, resumed)
    (resumed / "checkpoints" / "step_00000008.pt").unlink()
    resume_run(resumed, quiet)
    assert {"task_optimizer", "discriminator_optimizer"} <= state(resumed, 8).keys()
    assert [pools.keys() for pools in state(resumed, 8)["ranks"]] == [{"synthetic_pool", "real_pool"}]
    assert_same(state(undisturbed, 8), state(resumed, 8))
    losses = [
        [{name: value for name, value in line.items() if name.startswith("loss")} for line in read_metrics(run)]
        for run in (undisturbed, resumed)
    ]
    assert losses[0] == losses[1]
