"""A step that failed, made again; the oracles are the run itself, and weights that the test has spoilt."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import quiet, settings

from fastssl.cli import main
from fastssl.errors import CheckpointError, DataError, NonFiniteLossError
from fastssl.telemetry import read_metrics
from fastssl.train import start_run
from fastssl.train.failure import read_failure
from fastssl.train.replay import replay


def command(*arguments: object) -> int:
    sys.argv = ["fastssl", "train", *map(str, arguments)]
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def arguments_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def failed(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> Path:
    """A run of a far too high learning rate, whose losses are looked at after its step 8."""
    config = settings(coded_synthetic, coded_real, "train.steps=12", "train.log_every=8", "optim.lr=1e30")
    with pytest.raises(NonFiniteLossError) as raised:
        start_run(config, tmp_path / "run", quiet)
    (path,) = (tmp_path / "run").glob("failed_step_*.json")
    assert f"step {read_failure(path).step}" in str(raised.value)
    assert str(path) in str(raised.value)
    return path


def test_the_very_step_is_made_again(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure = read_failure(failed)
    assert 1 < failure.step < 8
    assert failed.name == f"failed_step_{failure.step:08d}.json"
    assert failure.checkpoint is None
    assert failure.positions == {"synthetic": 4 * (failure.step - 1), "real": 3 * (failure.step - 1)}
    seen = failure.batches["synthetic"]
    assert len(seen["keys"]) == len(seen["views"]["flip"]) == len(seen["views"]["channel"]) == 4
    assert all(re.search(r"\.tar: coded_\d+", key) for key in seen["keys"])
    before = {path: path.read_bytes() for path in failed.parent.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command("--replay", failed, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["reproduced"]) == (failure.step, True)
    loss = failure.why.split()[1]
    assert told["losses"][loss] in ("nan", "inf")
    assert set(told["gradient_norms"]) == {"backbone", "heads", "discriminator"}
    assert told["first_not_finite"]
    assert before == {path: path.read_bytes() for path in failed.parent.rglob("*") if path.is_file()}
    assert command("--replay", failed) == 0
    assert f"first that is not finite: {told['first_not_finite']}\n" in capsys.readouterr().out


def test_a_replay_goes_on_from_the_newest_sound_checkpoint(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The losses of steps that did not fail are those that the run logged."""
    run = tmp_path / "run"
    config = settings(
        coded_synthetic, coded_real, "train.steps=9", "train.checkpoint_every=3", "train.log_every=1", "optim.lr=1e-3"
    )
    start_run(config, run, quiet)
    (run / "failed.json").write_text(json.dumps(made_up(config, run, 8)))
    (run / "checkpoints" / "step_00000006.pt").write_bytes(b"torn")
    told = replay(run / "failed.json", quiet)
    assert "step_00000006.pt is passed over" in caplog.text
    assert (told["from_checkpoint"], told["reproduced"], told["first_not_finite"]) == (3, False, None)
    logged = read_metrics(run)[7]
    assert logged["step"] == 8
    assert {f"loss/{name}": loss for name, loss in told["losses"].items()} == {
        name: value for name, value in logged.items() if name.startswith("loss/")
    }
    assert all(0 < norm < 1e6 for norm in told["gradient_norms"].values())
    assert command("--replay", run / "failed.json") == 4  # the step is sound


def test_the_first_tensor_that_is_not_finite_is_named(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = settings(coded_synthetic, coded_real, "train.steps=2", "train.checkpoint_every=1")
    start_run(config, run, quiet)
    path = run / "checkpoints" / "step_00000001.pt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    content["state"]["backbone"]["layers.conv3.conv.bias"][5] = float("nan")
    torch.save(content, path)
    (run / "failed.json").write_text(json.dumps(made_up(config, run, 2)))
    assert replay(run / "failed.json", quiet)["first_not_finite"] == (
        "the weights backbone.layers.conv3.conv.bias, before the step"
    )
    # Finite weights, and an output of them that is not.
    content["state"]["backbone"]["layers.conv3.conv.bias"][5] = 3e38
    content["state"]["backbone"]["layers.conv3.norm.weight"][5] = 3e38
    torch.save(content, path)
    assert "backbone.layers.conv3" in replay(run / "failed.json", quiet)["first_not_finite"]


def test_what_is_no_failed_step_is_refused(failed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not tell of a step that failed"):
        replay(failed.parent / "summary.json", quiet)
    with pytest.raises(DataError, match="does not tell of a step that failed"):
        replay(tmp_path / "nothing.json", quiet)
    content = json.loads(failed.read_text())
    content["batches"]["synthetic"]["views"]["top"][0] += 1
    (failed.parent / "other.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="batches are not those of the run"):
        replay(failed.parent / "other.json", quiet)
    assert command("--replay", failed, "--set", "optim.lr=1") == 2
    assert command("--replay", failed, "--resume") == 2
    shutil.rmtree(failed.parent / "tensorboard")


def made_up(config: Any, run: Path, step: int) -> dict[str, Any]:
    """What a failure at a step would have left, told by hand."""
    from dataclasses import asdict

    from fastssl.loader import training_domains
    from fastssl.methods import find_method
    from fastssl.train.failure import Failure, batches_at

    domains = training_domains(find_method(config.method).domains(config), config)
    positions = {name: (step - 1) * domain.batch_size for name, domain in domains.items()}
    return asdict(
        Failure(
            step=step,
            why="made up",
            seed=0,
            checkpoint=None,
            total_steps=config.train.steps,
            world_size=1,
            positions=positions,
            fingerprints={name: domain.fingerprint for name, domain in domains.items()},
            batches=batches_at(domains, positions, 1),
        )
    )
