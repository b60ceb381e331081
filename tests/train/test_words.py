"""Settings that cannot work, or do nothing, by the commands that give them: what is said, and that nothing is left."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from patterns import SIDE, CodedSource
from small_runs import SMALL, quiet, settings

from fastssl.errors import ConfigError, DataError, NonFiniteLossError
from fastssl.methods import load_config, read_config, unit_of
from fastssl.shards import pack
from fastssl.telemetry import read_metrics
from fastssl.train import load_trained, resume_run, start_run


@pytest.mark.parametrize(
    ("settings_given", "words"),
    [
        (["optim.betas=[0.9,1.0]"], "optim.betas.1"),
        (["optim.discriminator_momentum=1.0"], "optim.discriminator_momentum"),
        (["loss.depth_weight=.inf"], "a finite number"),
        (["train.threads=20000"], "train.threads"),
        (["train.prefetch=100000"], "train.prefetch"),
        (["model.width=1e9"], "model.width"),
        (["model.fc_channels=100000000"], "model.fc_channels"),
        (["model.head_channels=1000000000"], "model.head_channels"),
        (["data.batch_synthetic=100000"], "data.batch_synthetic"),
        (["data.batch_real=100000"], "data.batch_real"),
        (["data.size=100003"], "data.size"),
        (["data.size=67", "data.batch_synthetic=1"], "enlarge the batch, or data.size"),
        (["data.size=67", "data.batch_real=1"], "enlarge the batch, or data.size"),
        (
            ["loss.depth_weight=0", "loss.normal_weight=0", "loss.edge_weight=0", "loss.adversarial_weight=0"],
            "nothing would be learnt",
        ),
        (["model.tasks=[edge]", "model.adapted_layer=none", "loss.edge_weight=0"], "loss.edge_weight"),
        (["model.tasks=depth"], "a list, such as"),
        (["optim.lr="], "seen: nothing (null)"),
    ],
)
def test_settings_that_would_crash_hang_or_do_nothing(
    settings_given: list[str],
    words: str,
    coded_synthetic: Path,
    coded_real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--synthetic", coded_synthetic, "--real", coded_real, "--out", tmp_path / "run"]
    given = [part for setting in settings_given for part in ("--set", setting)]
    assert command(monkeypatch, "train", "--preset", "tiny", *data, *given) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_a_momentum_of_1_is_refused_by_rotation_too() -> None:
    with pytest.raises(ConfigError, match=r"optim\.momentum"):
        load_config("tiny", method="rotation", overrides=["optim.momentum=1.0"])


def test_a_batch_of_one_is_taken_where_it_can_be() -> None:
    assert load_config("tiny", overrides=["data.batch_synthetic=1", "data.batch_real=1"]).data.batch_synthetic == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["loss.edge_division=whole"], "loss.edge_division=whole has no effect with loss.edge_form=hed"),
        (["optim.order=discriminator_first", "model.adapted_layer=none"], "optim.order=discriminator_first has no"),
        (["model.running_statistics=all", "model.adapted_layer=none"], "model.running_statistics=all has no effect"),
    ],
)
def test_settings_without_effect_are_warned_of(given: list[str], words: str, caplog: pytest.LogCaptureFixture) -> None:
    load_config("tiny", overrides=given)
    assert words in caplog.text
    caplog.clear()
    for preset in ("paper", "released", "tiny"):
        load_config(preset)
    assert not caplog.text


def test_weights_that_are_ruined_are_not_kept(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    """The loss of the only step is finite, and what it leaves is not."""
    config = settings(coded_synthetic, coded_real, "train.steps=1", "optim.lr=1e30")
    with pytest.raises(NonFiniteLossError, match="weights are not finite, or too large") as raised:
        start_run(config, tmp_path / "run", quiet)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended"]["how"] == "failed"
    assert "begin another run with a lower optim.lr, since --resume" in str(raised.value)
    assert "--amp" not in str(raised.value)


def test_only_where_amp_is_on_is_it_blamed(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, "train.steps=4", "optim.lr=1e30", "train.amp=true")
    with pytest.raises(NonFiniteLossError, match=r"or without --amp \(bfloat16\)"):
        start_run(config, tmp_path / "run", quiet)


def test_a_batch_of_copies_is_warned_of(coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(CodedSource(3, "synthetic"), tmp_path / "few", size=SIDE)
    start_run(settings(tmp_path / "few", coded_real, "train.steps=1"), tmp_path / "run", quiet)
    assert "the synthetic data have 3 images, and a step takes 4" in caplog.text
    assert "the real data" not in caplog.text


def test_another_number_of_threads_is_told(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start_run(settings(coded_synthetic, coded_real, "train.steps=1"), tmp_path, quiet)
    caplog.set_level(logging.INFO)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        resume_run(tmp_path, quiet, overrides=["train.steps=2"])
    finally:
        torch.set_num_threads(before)
    assert f"goes on with {before + 1} threads of torch instead of {before}" in caplog.text


def test_a_run_without_photos_counts_images(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, "train.steps=2", "model.adapted_layer=none")
    assert (unit_of(config), unit_of(settings(coded_synthetic, coded_real))) == ("images", "pairs")
    start_run(config, tmp_path, quiet)
    assert "throughput/images_per_s" in read_metrics(tmp_path)[-1]
    assert "images_per_s" in json.loads((tmp_path / "summary.json").read_text())["throughput"]
    assert load_trained(tmp_path).config == config


def test_an_unknown_method_of_a_run_has_a_hint_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("method: rotations\npreset: tiny\n")
    with pytest.raises(DataError, match=r"'rotation'\?(.|\n)*hint: write the name as the run had it"):
        read_config(path)


def test_what_the_command_line_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "eval", "neighbors", tmp_path) == 2
    assert "Did you mean 'neighbours'" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    for text in ("a=", "=b", "a"):
        assert command(monkeypatch, "eval", "neighbours", tmp_path, "--real", tmp_path, "--beside", text) == 2
        assert "expected: NAME=RUN" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text("preset: released\n")
    given: list[Any] = ["train", "--preset", "tiny", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run"]
    assert command(monkeypatch, *given) == 2
    assert "names another preset" in capsys.readouterr().err
    assert load_config("tiny", overrides=SMALL).preset == "tiny"
