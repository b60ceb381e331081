"""The check of a GPU, rehearsed on the CPU: every probe still fits the code, and what is cut short or fails is told."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "gpu_check.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("benchmarks", "tools"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module("gpu_check")


@pytest.mark.parametrize("name", ["env", "smoke", "engine", "step", "train", "loading", "larger"])
def test_a_probe_finds_all_it_looks_for(
    tool: ModuleType, torch_as_it_was: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tool, "STEP_FORMS", {"bf16": tool.BF16})
    # Compiling takes most of a minute here, the first time.
    monkeypatch.setattr(tool, "LARGER_FORMS", {"two batches": tool.LARGER_FORMS["two batches"]})
    bench = tool.Bench(on_gpu=False, out=tmp_path, data=tmp_path / "data")
    assert tool.run_probe(name, bench) == 0
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    assert facts
    if name == "smoke":
        assert all(fact["equal"] and fact["image"] == [0, 0] for fact in facts.values())


def test_all_stages_have_a_record_and_what_fails_is_told(tmp_path: Path) -> None:
    """Without a repository, git, or a place of its own to write in; `smoke` has no time left."""
    command = [sys.executable, str(TOOL), "--cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--only", "env,smoke", "--budget", "8.5"], cwd=tmp_path, check=False)
    assert done.returncode == 1
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["stages"]["smoke"]["rc"] is None
    assert list(found["stages"]) == ["env", "smoke"]


def test_a_stage_that_hangs_costs_itself(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = "import time; print('so far', flush=True); time.sleep(99)"
    monkeypatch.setattr(tool, "_command", lambda name, bench: [sys.executable, "-c", hang])
    record = tool.run_stage("step", tool.Bench(on_gpu=False, out=tmp_path, data=tmp_path / "data"), 2.0, {})
    assert record["rc"] == "timeout"
    assert record["end"] == ["so far"]


def test_a_finding_that_fails_is_told_and_the_next_one_made(tool: ModuleType, tmp_path: Path) -> None:
    facts = tool.Facts(tmp_path / "x.json")
    facts.find("bad", lambda: 1 / 0)
    facts.find("good", lambda: 3)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "bad": {"error": "ZeroDivisionError: division by zero"},
        "good": 3,
    }
    assert facts.failed == ["bad"]


def test_the_budget_is_enough_for_all_stages(tool: ModuleType) -> None:
    assert sum(stage.limit_s for stage in tool.STAGES.values()) <= tool.BUDGET_S
