"""Whole trainings on packed patterns, through a real DALI pipeline; the oracle is a run compared with itself."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import yaml
from patterns import SIDE, CodedSource
from small_runs import SMALL, assert_resumed_run_ends_as_undisturbed, assert_same, quiet, settings, state

from fastssl.batch import Record
from fastssl.cli import main
from fastssl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MachineError,
    NonFiniteLossError,
    ShardError,
    UsageError,
)
from fastssl.methods import load_config, read_config
from fastssl.runs import find_runs
from fastssl.shards import pack
from fastssl.telemetry import read_metrics
from fastssl.train import Stopped, complete_run, load_trained, resume_run, start_run
from fastssl.train.trainer import lr_factor


@pytest.fixture(scope="module")
def finished(coded_synthetic: Path, coded_real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    start_run(settings(coded_synthetic, coded_real, "train.steps=8", "train.checkpoint_every=4"), run, quiet)
    return run


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "samples", "summary.json"}
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        "step_00000004.pt",
        "step_00000008.pt",
    ]
    lines = read_metrics(finished)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    losses = {"loss/depth", "loss/normal", "loss/edge", "loss/adversarial", "loss/discriminator"}
    assert all(losses <= line.keys() for line in lines)
    assert all(0 <= line["throughput/data_wait_fraction"] <= 1 for line in lines)
    trained = load_trained(finished)
    networks, config = trained.method.networks, trained.config
    assert config.train.steps == 8
    assert not networks.backbone.training


def test_two_runs_with_one_seed_are_bit_identical(finished: Path, tmp_path: Path) -> None:
    config = load_config(file=finished / "config.yaml")
    start_run(config, tmp_path / "again", quiet)
    assert_same(state(finished, 8), state(tmp_path / "again", 8))
    for before, after in zip(read_metrics(finished), read_metrics(tmp_path / "again"), strict=True):
        assert {k: v for k, v in before.items() if k.startswith("loss")} == {
            k: v for k, v in after.items() if k.startswith("loss")
        }


def test_a_resumed_run_ends_as_the_undisturbed_one(finished: Path, tmp_path: Path) -> None:
    """Killed by SIGKILL somewhere after its first checkpoint, resumed in this process: bit for bit the same."""
    run = tmp_path / "killed"
    arguments = [sys.executable, "-m", "fastssl", "train", "--out", str(run), "--config", str(finished / "config.yaml")]
    # Slowed down by a checkpoint a step, so that the kill comes before the end; they are no part of the state.
    process = processes.start([*arguments, "--set", "train.checkpoint_every=1"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((run / "checkpoints").glob("*.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    assert [one.state for one in find_runs(run)] == ["running"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [one.state for one in find_runs(run)] == ["ended"]
    kept = max(int(path.stem[5:]) for path in (run / "checkpoints").glob("*.pt"))
    assert kept < 8, "the run ended before it was killed"
    resume_run(run, quiet)
    assert_same(state(finished, 8), state(run, 8))
    assert [line["step"] for line in read_metrics(run)] == sorted({line["step"] for line in read_metrics(run)})
    with pytest.raises(CheckpointError, match="no step is left"):
        resume_run(run, quiet)


def test_a_deterministic_run_ends_the_same_whether_resumed_or_not(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, torch_as_it_was: None
) -> None:
    assert_resumed_run_ends_as_undisturbed(coded_synthetic, coded_real, tmp_path)


def test_loss_falls_on_what_is_learnt(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, "train.steps=40", "model.adapted_layer=none", "train.log_every=10")
    start_run(config, tmp_path / "run", quiet)
    lines = read_metrics(tmp_path / "run")
    assert lines[-1]["loss/normal"] < 0.5 * lines[0]["loss/normal"]
    assert "loss/adversarial" not in lines[-1]


def test_non_finite_loss_names_task_and_step(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, "train.steps=8", "optim.lr=1e30")
    with pytest.raises(NonFiniteLossError, match=r"loss is not finite\n  where: step [23]"):
        start_run(config, tmp_path / "run", quiet)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checkpoints_that_are_kept_have_a_rhythm_of_their_own(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    rhythm = ("train.checkpoint_every=5", "train.keep_every=3", "train.keep_checkpoints=1")
    start_run(settings(coded_synthetic, coded_real, "train.steps=8", *rhythm), tmp_path, quiet)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"step_{step:08d}.pt" for step in (3, 6, 8)
    ]


def test_learning_rate_drops() -> None:
    optim = load_config("paper").optim
    factors = [lr_factor(optim, step, 100) for step in (0, 59, 60, 89, 90, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_factor(load_config("released").optim, 99, 100) == 1


def test_an_earlier_run_is_left_untouched(finished: Path, coded_synthetic: Path, coded_real: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="not empty"):
        start_run(settings(coded_synthetic, coded_real), finished, quiet)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_wrong_datasets_are_refused_before_anything_is_written(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    cases = [
        (settings(coded_real, coded_real), DataError, "of the wrong domain"),
        (settings(coded_synthetic, coded_synthetic), DataError, "of the wrong domain"),
        (settings(tmp_path / "nowhere", coded_real), DataError, "no such folder"),
        (settings(coded_synthetic, coded_real, "data.size=131"), ConfigError, "smaller than the network"),
        (load_config("tiny"), UsageError, "no synthetic dataset"),
        (load_config("tiny", overrides=[f"data.synthetic={coded_synthetic}"]), UsageError, "no real dataset"),
    ]
    for config, error, message in cases:
        with pytest.raises(error, match=message):
            start_run(config, tmp_path / "run", quiet)
        assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_architecture(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "changed"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = (finished / "checkpoints" / "step_00000004.pt").read_bytes()
    (run / "checkpoints" / "step_00000004.pt").write_bytes(checkpoint)
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["model"]["width"] = 0.2
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=r"another architecture(.|\n)*model.width = 0.1"):
        resume_run(run, quiet)

    (run / "checkpoints" / "step_00000004.pt").write_bytes(checkpoint[: len(checkpoint) // 2])
    with pytest.raises(DataError, match=r"is damaged(.|\n)*step_00000004.pt(.|\n)*there is none before it"):
        resume_run(run, quiet)


def test_other_data_are_refused_when_a_run_is_continued(coded_real: Path, tmp_path: Path) -> None:
    """The dataset was packed again, with other images, under its old name."""
    data, run = tmp_path / "data", tmp_path / "run"
    pack(CodedSource(11, "synthetic"), data, size=SIDE, samples_per_shard=4, jpeg_quality=98)
    start_run(settings(data, coded_real, "train.steps=2"), run, quiet)
    shutil.rmtree(data)
    pack(CodedSource(11, "synthetic"), data, size=SIDE, samples_per_shard=4, jpeg_quality=90)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 2", "steps: 4"))
    with pytest.raises(CheckpointError, match="synthetic data are not those"):
        resume_run(run, quiet)


def test_damaged_samples_cost_no_step_and_are_named_in_the_summary(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "data")
    archive = tmp_path / "data" / "000001.tar"
    content = bytearray(archive.read_bytes())
    end = content.index(b"\xff\xd9")
    content[end - 200 : end + 2] = bytes(202)
    archive.write_bytes(content)
    start_run(settings(tmp_path / "data", coded_real, "train.steps=6"), tmp_path / "run", quiet)
    assert state(tmp_path / "run", 6)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (place,) = summary["damaged_samples"]["synthetic"]
    assert "000001.tar: coded_004" in place
    assert summary["damaged_samples"]["real"] == []
    limited = settings(tmp_path / "data", coded_real, "train.steps=6", "data.max_bad=0")
    with pytest.raises(ShardError, match="coded_004"):
        start_run(limited, tmp_path / "limited", quiet)
    assert "coded_004" in (tmp_path / "limited" / "summary.json").read_text()


def test_two_datasets_are_mixed_by_their_weights(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    pack(CodedSource(5, "synthetic"), tmp_path / "few", size=SIDE)
    weights = json.dumps({str(coded_synthetic): 0.75, str(tmp_path / "few"): 0.25})
    config = load_config("tiny", overrides=[*SMALL, f"data.synthetic={weights}", f"data.real={coded_real}"])
    start_run(
        config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})}), tmp_path / "run", quiet
    )
    assert read_config(tmp_path / "run" / "config.yaml").data.synthetic == json.loads(weights)


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    finished: Path, coded_synthetic: Path, coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From step 3 to step 7 no file may grow: the checkpoint of step 4 is missed, and all lines come in the end."""
    run, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done: int, total: int | None = None, words: str = "") -> None:
        # Called after the metrics of a step and before its checkpoint.
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 if 2 <= done < 8 else before[0], before[1]))

    try:
        start_run(settings(coded_synthetic, coded_real, "train.steps=8", "train.checkpoint_every=4"), run, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("metrics.jsonl cannot be written, and the training goes on") == 1
    assert "a checkpoint could not be written, and the training goes on" in caplog.text
    assert "step_00000004.pt" in caplog.text
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000008.pt"]
    assert_same(state(finished, 8), state(run, 8))
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6, 8]


def test_a_disk_that_is_full_at_the_end_stops_the_run_which_goes_on_as_if_undisturbed(
    finished: Path, coded_synthetic: Path, coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done: int, total: int | None = None, words: str = "") -> None:
        if done == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))

    try:
        with pytest.raises(MachineError, match=r"summary.json(.|\n)*--resume"):
            start_run(settings(coded_synthetic, coded_real, "train.steps=8", "train.checkpoint_every=4"), run, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "damaged samples are not in the summary" in caplog.text
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000004.pt"]
    resume_run(run, quiet)
    assert_same(state(finished, 8), state(run, 8))
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6, 8]


def test_a_run_folder_that_cannot_be_made(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = settings(coded_synthetic, coded_real, "train.steps=2")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="is a file"):
            start_run(config, run, quiet)
    with pytest.raises(MachineError, match=r"cannot be made\n  where: /proc/run"):
        start_run(config, Path("/proc/run"), quiet)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    finished: Path, coded_synthetic: Path, coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    config = settings(coded_synthetic, coded_real, "train.steps=8", "train.checkpoint_every=4")

    def killed(done: int, total: int | None = None, words: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_run(config, run, killed)
    assert [line["step"] for line in read_metrics(run)] == [2]
    with pytest.raises(UsageError, match=r"no checkpoint yet(.|\n)*--resume"):
        start_run(config, run, quiet)
    caplog.set_level(logging.INFO)
    resume_run(run, quiet)
    assert "begins from the start" in caplog.text
    assert_same(state(finished, 8), state(run, 8))
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6, 8]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, "SIGTERM"])
def test_completing_a_run_goes_on_wherever_it_was_ended_and_does_nothing_after_its_end(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, ends: Any
) -> None:
    """In the middle of a training, which leaves files and may leave a summary."""
    config = settings(coded_synthetic, coded_real, "train.steps=5", "train.checkpoint_every=100")
    start_run(config, tmp_path / "undisturbed", quiet)

    def ended(done: int, total: int | None = None, words: str = "") -> None:
        if done == 2 and ends == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        elif done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Stopped if ends == "SIGTERM" else KeyboardInterrupt):
        complete_run(config, tmp_path / "run", ended)
    complete_run(config, tmp_path / "run", quiet)
    assert_same(state(tmp_path / "run", 5), state(tmp_path / "undisturbed", 5))
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    complete_run(config, tmp_path / "run", quiet)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before


def test_leftovers_of_a_killed_start_do_not_block(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml.0123.partial").touch()
    start_run(settings(coded_synthetic, coded_real, "train.steps=1"), tmp_path, quiet)
    assert state(tmp_path, 1)


@pytest.mark.parametrize("name", ["\U0001f3e0", os.fsdecode(b"caf\xe9"), "a\nb"])
def test_names_survive_in_all_that_a_run_writes(
    name: str, coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    shutil.copytree(coded_real, tmp_path / name)
    run = tmp_path / f"{name}_run"
    start_run(
        settings(coded_synthetic, coded_real, "train.steps=1").model_copy(
            update={
                "data": load_config(
                    "tiny",
                    overrides=SMALL,
                    settings={"data": {"synthetic": {str(coded_synthetic): 1}, "real": {str(tmp_path / name): 1}}},
                ).data
            }
        ),
        run,
        quiet,
    )
    assert read_config(run / "config.yaml").data.real == {str(tmp_path / name): 1.0}
    assert len(list((run / "tensorboard").iterdir())) == len(read_metrics(run)) == 1
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 1", "steps: 2"))
    resume_run(run, quiet)
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


def test_what_no_sample_tells_cannot_be_learnt(tmp_path: Path, coded_real: Path) -> None:
    """Its losses would be 0 from the first step on, which looks like success."""

    class Unknown(CodedSource):
        def read(self, reference: str) -> Record:
            record = super().read(reference)
            return replace(record, depth=np.zeros_like(record.depth))

    pack(Unknown(4, "synthetic"), tmp_path / "rooms", size=SIDE)
    with pytest.raises(DataError, match=r"no depth is known(.|\n)*model\.tasks=\[edge\]"):
        start_run(settings(tmp_path / "rooms", coded_real), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()
    start_run(settings(tmp_path / "rooms", coded_real, "model.tasks=[edge]", "train.steps=1"), tmp_path / "run", quiet)


@pytest.mark.parametrize(
    ("name", "kind"), [("metrics.jsonl", "folder"), ("summary.json", "folder"), ("samples", "file")]
)
def test_something_of_another_kind_in_a_run_is_named(
    finished: Path, tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoints" / "step_00000008.pt").unlink()
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / name).mkdir() if kind == "folder" else (run / name).touch()
    monkeypatch.setattr(sys, "argv", ["fastssl", "train", "--out", str(run), "--resume"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    told = capsys.readouterr().err
    assert f"where: {run / name}" in told
    assert "hint: " in told


def test_checkpoints_without_their_settings_are_told(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"checkpoints and not the settings(.|\n)*put it back"):
        start_run(load_config("tiny"), run, quiet)
