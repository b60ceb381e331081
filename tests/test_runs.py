"""`fastssl runs`: how runs stand, made by real trainings that were finished, stopped and failed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from small_runs import quiet, settings

from fastssl.cli import main
from fastssl.errors import FastsslError, UsageError
from fastssl.runs import find_runs
from fastssl.train import start_run


def test_every_way_to_end_is_told(
    coded_synthetic: Path,
    coded_real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_run(
        settings(coded_synthetic, coded_real, "train.steps=3", "train.log_every=1"), tmp_path / "a" / "done", quiet
    )
    with pytest.raises(FastsslError):
        start_run(
            settings(coded_synthetic, coded_real, "train.steps=9", "optim.lr=1e30", "train.log_every=1"),
            tmp_path / "b_diverged",
            quiet,
        )
    longer = settings(coded_synthetic, coded_real, "train.steps=1000000", "train.log_every=1")
    now = list[str]()

    def interrupt(done: int, total: int | None = None, words: str = "") -> None:
        if not now:
            now.extend(run.state for run in find_runs(tmp_path / "c_stopped"))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(FastsslError, match="stopped by SIGTERM after step"):
        start_run(longer, tmp_path / "c_stopped", interrupt)
    assert now == ["running"]
    # Of a process that is killed there is no summary; `train/test_run.py` kills one.
    shutil.copytree(tmp_path / "c_stopped", tmp_path / "d_killed")
    (tmp_path / "d_killed" / "summary.json").unlink()
    shutil.copytree(tmp_path / "a" / "done", tmp_path / "e_torn")
    (tmp_path / "e_torn" / "config.yaml").write_text("a: [")
    found = {Path(run.path).name: run for run in find_runs(tmp_path)}
    states = {name: run.state for name, run in found.items()}
    assert states == {
        "done": "finished", "b_diverged": "failed", "c_stopped": "stopped", "d_killed": "ended", "e_torn": "unreadable",
    }  # fmt: skip
    assert found["done"].steps == 3
    assert set(found["done"].losses) == {"depth", "normal", "edge", "adversarial", "discriminator"}
    assert found["done"].rate is not None
    assert "loss is not finite" in found["b_diverged"].why
    assert found["c_stopped"].why.startswith("stopped by SIGTERM after step")
    monkeypatch.setattr(sys, "argv", ["fastssl", "runs", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["finished", "failed", "stopped", "ended", "unreadable"]
    monkeypatch.setattr(sys, "argv", ["fastssl", "runs", str(tmp_path), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert [run["state"] for run in json.loads(capsys.readouterr().out)] == [line.split()[1] for line in lines]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert list(find_runs(tmp_path)) == []
    with pytest.raises(UsageError, match="no such folder"):
        list(find_runs(tmp_path / "none"))
