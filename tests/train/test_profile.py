"""A trace of a training: what is in it, and that the training is none the wiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_same, quiet, settings, state

from fastssl.ranges import traced
from fastssl.train import start_run


def test_a_trace_has_the_steps_and_the_loader_s_stages(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut = ("data.window=[1.0, 1.0]", "data.size=67", "train.steps=18", "train.prefetch=1")
    config = settings(coded_synthetic, coded_real, *cut)
    start_run(config, tmp_path / "plain", quiet)
    assert not (tmp_path / "plain" / "trace.json").exists()
    start_run(config, tmp_path / "traced", quiet, profile=True)
    assert_same(state(tmp_path / "plain", 18), state(tmp_path / "traced", 18))
    events = ranges(tmp_path / "traced")
    steps = {name: event for event in events if (name := event["name"]).startswith("step ")}
    assert list(steps) == [f"step {number}" for number in range(10, 16)]
    main = steps["step 10"]["tid"]
    ends = 0.0
    for step in steps.values():
        assert step["ts"] >= ends  # one after the other, in microseconds
        ends = step["ts"] + step["dur"]
    begin, whole = steps["step 10"]["ts"], ends - steps["step 10"]["ts"]
    for name, other_thread in (("loader: read", False), ("loader: DALI", False), ("loader: targets", True)):
        found = [event for event in events if event["name"] == name]
        assert len(found) >= 5, name
        assert all(begin - whole <= event["ts"] <= ends for event in found)
        assert 0 < sum(event["dur"] for event in found) <= 4 * whole, name
        assert all((event["tid"] != main) == other_thread for event in found), name
    waits = [event for event in events if event["name"] == "wait for data"]
    assert len(waits) == 6
    assert sum(event["dur"] for event in waits) < whole
    assert any(event["name"] == "aten::convolution" for event in events)
    assert (tmp_path / "traced" / "trace.json").stat().st_size < 30e6
    capfd.readouterr()


def test_a_short_run_is_traced_at_its_end(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    start_run(settings(coded_synthetic, coded_real, "train.steps=3"), tmp_path, quiet, profile=True)
    steps = [event["name"] for event in ranges(tmp_path) if event["name"].startswith("step ")]
    assert steps == ["step 2", "step 3"]


def test_ranges_are_one_empty_context_while_no_trace_is_taken() -> None:
    assert traced("a") is traced("b")


def ranges(run: Path) -> list[dict[str, Any]]:
    """Events with a beginning and a duration, in the order of time."""
    content = json.loads((run / "trace.json").read_text())
    return sorted((event for event in content["traceEvents"] if event.get("ph") == "X"), key=lambda event: event["ts"])
