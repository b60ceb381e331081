"""What every method that is registered must do, by the commands that a user gives."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from small_runs import assert_same, quiet, state

from fastssl.batch import Batch
from fastssl.errors import ConfigError
from fastssl.evaluate import Neighbours, evaluate
from fastssl.loader import LoaderOptions, training_domains
from fastssl.methods import METHODS, load_config
from fastssl.report import write_report
from fastssl.telemetry import read_metrics
from fastssl.train import load_trained, resume_run, start_run

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
SMALL = [
    "data.size=67", "data.batch_synthetic=8", "data.batch_real=8", "model.width=0.2", "model.fc_channels=64",
    "train.log_every=1", "train.steps=8", "train.checkpoint_every=4", "train.picture_every=8",
]  # fmt: skip

SLOW = {"jigsaw", "context"}
"""Methods that need hundreds of steps before their loss falls; soak tests of their own see that it does."""

every_method = pytest.mark.parametrize("name", METHODS)


def config(name: str, *overrides: str) -> Any:
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}"]
    return load_config("tiny", method=name, overrides=[*paths, *SMALL, *overrides])


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each method; its folder has the method's name."""
    folder: Path = tmp_path_factory.mktemp("methods") / request.param
    start_run(config(folder.name), folder, quiet)
    return folder


def test_one_seed_gives_one_run(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # what is global must not matter
    start_run(config(run.name), tmp_path / "again", quiet)
    assert_same(state(run, 8), state(tmp_path / "again", 8))
    start_run(config(run.name, "train.seed=1", "train.steps=1"), tmp_path / "other", quiet)
    first, other = (read_metrics(folder)[0] for folder in (run, tmp_path / "other"))
    losses = [name for name in first if name.startswith("loss/")]
    assert losses
    assert all(first[name] != other[name] for name in losses)


def test_a_run_that_is_resumed_ends_as_undisturbed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000008.pt").unlink()
    resume_run(tmp_path / "run", quiet)
    assert_same(state(run, 8), state(tmp_path / "run", 8))


@every_method
def test_losses_begin_at_chance_and_fall(tmp_path: Path, name: str) -> None:
    steps = 12 if name in SLOW else 60
    settings = config(name, *(f"train.{word}={steps}" for word in ("steps", "checkpoint_every", "picture_every")))
    start_run(settings, tmp_path / "run", quiet)
    losses = [
        {key[5:]: value for key, value in line.items() if key.startswith("loss/")}
        for line in read_metrics(tmp_path / "run")
    ]
    learnt = sorted(losses[0].keys() - {"adversarial", "discriminator"})  # these two pull against each other
    for loss in METHODS[name].chance(settings).keys() & learnt:
        assert losses[0][loss] == pytest.approx(METHODS[name].chance(settings)[loss], rel=0.4)
    first, last = (sum(sum(line[key] for key in learnt) for line in part) for part in (losses[:10], losses[-10:]))
    assert name in SLOW or not learnt or last < 0.97 * first
    assert all(math.isfinite(value) for line in losses for value in line.values())


def test_a_run_is_loaded_evaluated_and_reported(run: Path) -> None:
    name, trained = run.name, load_trained(run)
    assert trained.config.method == name
    assert trained.method.compared_layer in trained.method.backbone.feature_info
    found = evaluate(Neighbours(real=SAMPLE / "retrieval"), run).section()
    assert set(found["precision_at_1"]) == {"trained", "trained_reestimated", "untrained"}
    page = write_report(run).read_text(encoding="utf-8")
    assert METHODS[name].describe(trained.config) in page
    summary = json.loads((run / "summary.json").read_text())
    assert summary["throughput"][f"{METHODS[name].unit}_per_s"] > 0
    assert f"{METHODS[name].unit}/s" in page
    for loss in (key for key in read_metrics(run)[0] if key.startswith("loss/")):
        assert re.search(f"{loss[5:].replace('edge', 'contour')} loss", page, re.IGNORECASE), loss
    has_picture = trained.method.picture(first_batches(trained.config)) is not None
    assert bool(list((run / "samples").glob("train_*.png"))) == has_picture


def first_batches(settings: Any) -> dict[str, Batch]:
    """One of each domain that the method wants."""
    batches: dict[str, Batch] = {}
    for domain in training_domains(METHODS[settings.method].domains(settings), settings).values():
        with domain.training_batches(LoaderOptions(device=torch.device("cpu"))) as endless:
            batches[domain.name] = next(endless)
    return batches


@every_method
def test_every_setting_has_a_place_and_every_preset_loads(name: str) -> None:
    assert {"paper", "tiny"} <= METHODS[name].presets.keys()
    for preset in METHODS[name].presets:
        assert load_config(preset, method=name).preset == preset


def test_the_help_names_every_method(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "train", "--help") == 0
    words = capsys.readouterr().out
    for name in METHODS:
        assert name in words


def test_a_method_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: rotation\n")
    assert load_config("tiny", file=tmp_path / "c.yaml").method == "rotation"
    with pytest.raises(ConfigError, match="names another method"):
        load_config("tiny", method="cross_domain", file=tmp_path / "c.yaml")
