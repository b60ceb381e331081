"""Trainings that are asked to stop, in processes of their own, and what continues them; the oracle is a run alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from patterns import SIDE, CodedSource
from small_runs import assert_same, quiet, settings, state

from fastssl.config import write_config
from fastssl.errors import CheckpointError, ConfigError, DataError, UsageError
from fastssl.files import alone_in
from fastssl.methods import read_config
from fastssl.shards import pack
from fastssl.telemetry import read_metrics
from fastssl.train import resume_run, start_run

STEPS = 8
CONSTANT = "optim.schedule=constant"
"""Drops come at fractions of the length, so that a longer run has them at other steps."""


@pytest.fixture(scope="module")
def finished(coded_synthetic: Path, coded_real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stop") / "finished"
    start_run(
        settings(coded_synthetic, coded_real, f"train.steps={STEPS}", "train.checkpoint_every=4", CONSTANT), run, quiet
    )
    return run


def begin(run: Path, settings_of: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "fastssl", "train", "--out", run, "--config", settings_of / "config.yaml", *more]
    return processes.start(words, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, 0, marks=pytest.mark.soak),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak),
    ],
)
def test_a_signal_costs_no_step(finished: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The step that is being made is finished, its checkpoint is written, and the run goes on as if undisturbed."""
    run = tmp_path / "run"
    process = begin(run, finished, "--set", "train.steps=1000000", "--set", "train.log_every=1")
    metrics = run / "metrics.jsonl"
    wait_for(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
    started = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"stopped by {number.name} after step " in err
    reached = int(err.partition("after step ")[2].partition(",")[0])
    assert max(int(path.stem[5:]) for path in (run / "checkpoints").glob("*.pt")) == reached
    assert read_metrics(run)[-1]["step"] == reached
    resume_run(run, quiet, overrides=[f"train.steps={reached + 2}"])
    alone = tmp_path / "alone"
    config = read_config(run / "config.yaml")
    assert config.train.steps == reached + 2
    start_run(config, alone, quiet)
    assert_same(state(alone, reached + 2), state(run, reached + 2))


@pytest.mark.parametrize("later_s", [0.0, pytest.param(1.5, marks=pytest.mark.soak)])
def test_a_signal_before_the_first_step_ends_it_at_once(finished: Path, tmp_path: Path, later_s: float) -> None:
    """While it loads what it trains with, or the data."""
    process = begin(tmp_path / "run", finished)
    wait_for(process, lambda: b"SigCgt" in Path(f"/proc/{process.pid}/status").read_bytes() and catches_term(process))
    time.sleep(later_s)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped by SIGTERM" in err
    assert "Traceback" not in err


def catches_term(process: subprocess.Popen[str]) -> bool:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_two_trainings_in_one_folder_are_one_too_many(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with alone_in(run, "training"):
        with pytest.raises(UsageError, match="another training works on the folder"):
            resume_run(run, quiet, overrides=["train.steps=9"])
        (tmp_path / "new").mkdir()
    with alone_in(tmp_path / "new", "training"), pytest.raises(UsageError, match="another training works on"):
        start_run(read_config(finished / "config.yaml"), tmp_path / "new", quiet)


def test_a_run_becomes_longer_and_keeps_what_it_was(
    finished: Path, coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    shutil.copytree(finished, run)
    with pytest.raises(CheckpointError, match=r"no step is left(.|\n)*train.steps"):
        resume_run(run, quiet)
    resume_run(run, quiet, overrides=["train.steps=10", "train.log_every=1"])
    start_run(settings(coded_synthetic, coded_real, "train.steps=10", CONSTANT), alone, quiet)
    assert_same(state(alone, 10), state(run, 10))
    assert read_config(run / "config.yaml").train.steps == 10
    for name in ("optim.lr=0.5", "data.size=83", "model.width=0.2", "train.seed=4", "data.batch_real=5"):
        with pytest.raises(ConfigError, match=rf"another value(.|\n)*{name.partition('=')[0]}"):
            resume_run(run, quiet, overrides=["train.steps=12", name])
    assert read_config(run / "config.yaml").train.steps == 10


def test_data_that_moved_are_given_again(
    finished: Path, coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    """By fingerprint: at another path they are the same, and others are refused."""
    old, new, run = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    shutil.copytree(coded_synthetic, old)
    start_run(settings(old, coded_real, "train.steps=4", CONSTANT), run, quiet)
    old.rename(new)
    longer = ["train.steps=8"]
    with pytest.raises(DataError, match=r"no such folder(.|\n)*old(.|\n)*--synthetic"):
        resume_run(run, quiet, overrides=longer)
    other = {"synthetic": {str(new): 1.0}, "real": {str(shutil.copytree(new, tmp_path / "other")): 1.0}}
    with pytest.raises(DataError, match="wrong domain"):
        resume_run(run, quiet, overrides=longer, settings={"data": other})
    fewer = {"synthetic": {str(few(tmp_path / "few")): 1.0}}
    with pytest.raises(CheckpointError, match="synthetic data are not those"):
        resume_run(run, quiet, overrides=longer, settings={"data": fewer})
    resume_run(run, quiet, overrides=longer, settings={"data": {"synthetic": {str(new): 1.0}}})
    assert_same(state(finished, 8), state(run, 8))


def few(folder: Path) -> Path:
    pack(CodedSource(5, "synthetic"), folder, size=SIDE)
    return folder


def test_a_damaged_checkpoint_is_passed_over(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes were changed where no format would notice: the one before it is taken, and the run ends the same."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = run / "checkpoints" / "step_00000008.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
    newest.write_bytes(content)
    resume_run(run, quiet)
    assert f"{newest} is passed over" in caplog.text
    assert_same(state(finished, 8), state(run, 8))
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"words")
    with pytest.raises(DataError, match="damaged"):
        resume_run(run, quiet, overrides=["train.steps=12"])


def test_a_start_that_fails_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    config = read_config(finished / "config.yaml")
    write_config(config, tmp_path / "config.yaml")
    broken = config.model_copy(update={"data": config.data.model_copy(update={"real": {str(tmp_path): 1.0}})})
    with pytest.raises(DataError):
        start_run(broken, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()
