"""Held-out images measured during a training; the oracles are `fastssl eval`, and a run without them."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from patterns import SIDE, CodedSource
from small_runs import assert_same, quiet, settings, state

from fastssl.config import Config
from fastssl.errors import ConfigError, DataError, MachineError
from fastssl.evaluate import Tasks, evaluate
from fastssl.methods import load_config
from fastssl.report import summary_table, write_report
from fastssl.shards import pack
from fastssl.telemetry import read_metrics
from fastssl.train import Stopped, checkpoint, load_trained, resume_run, start_run, validation
from fastssl.train.checkpoint import read_best, read_checkpoint

EVERY = ["train.steps=8", "train.checkpoint_every=4", "train.validate_every=3"]
BY_DEPTH = "train.best_by=tasks/depth/abs_rel"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name rendered images and photos which no training reads."""
    folder = tmp_path_factory.mktemp("held_out")
    for domain, count in (("synthetic", 5), ("real", 7)):
        pack(CodedSource(count, domain), folder / domain, size=SIDE, jpeg_quality=90)  # type: ignore[arg-type]
    return [f"data.validation_{domain}={folder / domain}" for domain in ("synthetic", "real")]


@pytest.fixture(scope="module")
def validated(
    coded_synthetic: Path, coded_real: Path, held_out: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("validation") / "run"
    before = torch.get_rng_state()
    start_run(settings(coded_synthetic, coded_real, *EVERY, *held_out, BY_DEPTH), run, quiet)
    assert torch.equal(torch.get_rng_state(), before)
    return run


def values(run: Path) -> dict[int, dict[str, float]]:
    """Of each validation, by its step."""
    lines = {int(line["step"]): {n: v for n, v in line.items() if n.startswith("val/")} for line in read_metrics(run)}
    return {step: found for step, found in lines.items() if found}


def summary(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())


def test_validation_leaves_the_training_as_it_was(
    validated: Path, coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    """Networks with their running statistics, optimizers and pools, bit for bit."""
    start_run(settings(coded_synthetic, coded_real, *EVERY), tmp_path / "without", quiet)
    for step in (4, 8):
        assert_same(state(tmp_path / "without", step), state(validated, step))


def test_its_numbers_are_those_of_eval(validated: Path, held_out: list[str]) -> None:
    """At its end, and at the best step, of which there is a checkpoint that `evaluate` takes."""
    found = values(validated)
    assert list(found) == [3, 6, 8]
    tasks = Tasks(synthetic=held_out[0].partition("=")[2])
    best_step = min(found, key=lambda step: found[step]["val/tasks/depth/abs_rel"])
    for step, subject in ((8, validated), (best_step, validated / "checkpoints" / "best.pt")):
        section = evaluate(tasks, subject).section()
        for task in ("depth", "normal", "edge"):
            for name, of_subjects in section[task].items():
                expected = pytest.approx(of_subjects["trained"], rel=1e-5, abs=1e-7)
                assert found[step][f"val/tasks/{task}/{name}"] == expected
        assert section["conditions"]["step"] == step
        assert section["conditions"].get("checkpoint") == (None if subject is validated else "best.pt")
        assert summary(validated)["tasks"]["conditions"] == section["conditions"]
        told = (
            ""
            if step == 8
            else f"The numbers of tasks are of step {step} (best.pt), and the run has gone on to step 8."
        )
        assert told in summary_table(validated)
        assert bool(told) == ("gone on" in summary_table(validated))


def test_where_a_mean_of_the_weights_is_kept_it_is_measured_and_changes_nothing(
    coded_synthetic: Path, coded_real: Path, held_out: list[str], tmp_path: Path
) -> None:
    words = ["train.steps=4", "train.validate_every=2", "optim.average_decay=0.9"]
    for name, more in (("with", held_out), ("without", [])):
        start_run(settings(coded_synthetic, coded_real, *words, *more), tmp_path / name, quiet)
    assert_same(state(tmp_path / "with", 4), state(tmp_path / "without", 4))
    found = values(tmp_path / "with")[4]
    section = evaluate(Tasks(synthetic=held_out[0].partition("=")[2]), tmp_path / "with").section()
    for name, of_subjects in section["depth"].items():
        assert found[f"val/tasks/depth/{name}"] == pytest.approx(of_subjects["trained"], rel=1e-5, abs=1e-7)


def test_the_summary_has_the_last_and_the_best(validated: Path) -> None:
    found, told = values(validated), summary(validated)["validation"]
    assert {"val/probe/knn", "val/probe/rankme", "val/tasks/edge/threshold"} <= found[8].keys()
    for name, value in found[8].items():
        assert told["last"][name.removeprefix("val/")] == {"value": value, "step": 8}
    best = max(found, key=lambda step: found[step]["val/probe/rankme"])
    assert told["best"]["probe/rankme"] == {"value": found[best]["val/probe/rankme"], "step": best}
    assert "tasks/edge/threshold" not in told["best"]  # no threshold is better than another


def test_the_report_draws_what_was_measured(validated: Path) -> None:
    page = write_report(validated).read_text()
    section = page.partition('<section id="validation">')[2].partition("</section>")[0]
    assert section.count("<figure") == len(values(validated)[8])
    assert "Depth: absolute relative error" in section
    (validated / "report.html").unlink()


def test_a_method_without_tasks_is_probed(coded_real: Path, held_out: list[str], tmp_path: Path) -> None:
    def config(*more: str) -> Config:
        sizes = ["data.size=67", "data.batch_real=3", "model.width=0.1", "model.fc_channels=32", "train.steps=2"]
        found: Config = load_config(
            "tiny", method="rotation", overrides=[*sizes, f"data.real={coded_real}", held_out[1], *more]
        )
        return found

    with pytest.raises(ConfigError, match=r"predicts nothing(.|\n)*validation_synthetic"):
        start_run(config(held_out[0]), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()
    start_run(config(), tmp_path / "run", quiet)
    assert values(tmp_path / "run")[2].keys() == {"val/probe/knn", "val/probe/rankme"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.best_by=tasks/depth/absrel", "no such metric(.|\n)*'tasks/depth/abs_rel'"),
        ("train.best_by=probe/kNN", "'probe/knn'"),
        ("train.best_by=tasks/edge/threshold", "no checkpoint can be the best by this"),
        ("data.validation_real=/nowhere", "(no such folder|/nowhere)"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(
    override: str, words: str, coded_synthetic: Path, coded_real: Path, held_out: list[str], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        start_run(settings(coded_synthetic, coded_real, *held_out, override), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_a_best_checkpoint_needs_a_validation(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --validation-real"):
        start_run(settings(coded_synthetic, coded_real, "train.best_by=probe/knn"), tmp_path / "run", quiet)


def test_a_resumed_run_has_the_same_best(validated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(validated, run)
    (run / "checkpoints" / "step_00000008.pt").unlink()
    resume_run(run, quiet)
    assert values(run) == values(validated)
    assert summary(run)["validation"] == summary(validated)["validation"]
    assert_same(best_of(run), best_of(validated))
    assert_same(state(run, 8), state(validated, 8))


def best_of(run: Path) -> Any:
    return torch.load(run / "checkpoints" / "best.pt", weights_only=True)


def test_other_held_out_data_begin_a_new_best(
    validated: Path, tmp_path: Path, coded_synthetic: Path, coded_real: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may change; a value on other images is not compared with. Those of the training are told."""
    run = tmp_path / "run"
    shutil.copytree(validated, run)
    changed = {"data": {"validation_synthetic": {str(coded_synthetic): 1.0}}}
    resume_run(run, quiet, overrides=["train.steps=9"], settings=changed)
    assert best_of(run)["best"]["step"] == 9
    assert "the synthetic images of the validation are those of the training" in caplog.text
    assert load_trained(run / "checkpoints" / "best.pt").config.train.steps == 9


@pytest.mark.parametrize("killed_at", ["step_00000008.pt", "best.pt"])
def test_a_kill_between_two_writes_costs_no_best(
    killed_at: str, validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies before a file has its name leaves the best one before, and resuming writes the same."""
    run, write = tmp_path / "run", checkpoint._write
    shutil.copytree(validated, run)
    (run / "checkpoints" / "step_00000008.pt").unlink()
    config = load_trained(run).config
    (run / "checkpoints" / "best.pt").unlink()

    def killed(path: Path, *arguments: Any, **more: Any) -> None:
        if path.name == killed_at:
            (path.parent / f"{path.name}.0123.partial").write_bytes(b"half")
            raise MachineError("killed")
        write(path, *arguments, **more)

    monkeypatch.setattr(checkpoint, "_write", killed)
    with suppress(MachineError):
        resume_run(run, quiet)
    monkeypatch.undo()
    names = {path.name for path in (run / "checkpoints").iterdir() if path.suffix == ".pt"}
    assert killed_at not in names
    for name in names:
        read_checkpoint(run / "checkpoints" / name, config)
    if "step_00000008.pt" not in names:
        resume_run(run, quiet)
        assert_same(best_of(run)["best"], best_of(validated)["best"])
        assert not list((run / "checkpoints").glob("*.partial"))


def test_a_torn_best_is_passed_over(validated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(validated, run)
    best = best_of(run)["best"]
    config = load_trained(run).config
    assert read_best(run, config, best["data"]) is not None
    (run / "checkpoints" / "best.pt").write_bytes(b"half")
    assert read_best(run, config, best["data"]) is None
    assert "best.pt is not compared with" in caplog.text


def test_a_signal_ends_a_validation_with_a_checkpoint(
    coded_synthetic: Path, coded_real: Path, held_out: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the second batch of the first validation is awaited; the run goes on as if undisturbed."""
    run, each = tmp_path / "run", validation._each
    asked = []

    def interrupted(batches: Any, between: Any) -> Any:
        for batch in batches:
            if not asked:
                asked.append(signal.raise_signal(signal.SIGTERM))
            between()
            yield batch
            pytest.fail("no batch was to be measured")

    config = settings(coded_synthetic, coded_real, *EVERY, *held_out, BY_DEPTH)
    monkeypatch.setattr(validation, "_each", interrupted)
    with pytest.raises(Stopped, match="SIGTERM after step 3"):
        start_run(config, run, quiet)
    monkeypatch.setattr(validation, "_each", each)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000003.pt"]
    assert [line["step"] for line in read_metrics(run)] == [2, 3]
    assert not values(run)
    resume_run(run, quiet)
    assert list(values(run)) == [6, 8]
