"""Metrics files as a reader and as TensorBoard's own reader see them; the progress bar only where somebody looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastssl.telemetry import MetricsWriter, merge_summary, progress_bar, read_metrics


def test_metrics_reach_json_lines_and_tensorboard(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, {"loss/depth": 0.5, "lr": 1e-3})
        metrics.write(20, {"loss/depth": 0.25, "lr": 1e-3})
    assert [line["loss/depth"] for line in read_metrics(tmp_path)] == [0.5, 0.25]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/depth")] == [(10, 0.5), (20, 0.25)]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (10, 20, 30):
            metrics.write(step, {"loss/depth": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss/de')  # a kill in the middle of a line
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    with MetricsWriter(tmp_path, first_step=20) as metrics:
        metrics.write(30, {"loss/depth": -1})
    assert [(line["step"], line["loss/depth"]) for line in read_metrics(tmp_path)] == [(10, 10), (20, 20), (30, -1)]


def test_summary_sections_are_merged(tmp_path: Path) -> None:
    merge_summary(tmp_path, {"tasks": {"depth": 1}, "steps": 5})
    merge_summary(tmp_path, {"tasks": {"edge": 2}, "steps": 6})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"tasks": {"depth": 1, "edge": 2}, "steps": 6}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_no_progress_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("working") as advance:
        advance(1, 2, "words")
    assert capsys.readouterr().err == ""
