"""The trace of losses: the same twice, and told apart where anything differs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_a_trace_repeats_itself_and_sees_a_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("loss_trace")
    monkeypatch.setattr(tool, "SMALL", (*tool.SMALL, "train.steps=2"))
    first, second = (tool.trace(ROOT, "tiny", tmp_path / name) for name in ("first", "second"))
    assert len(first["losses"]) == 2
    assert {"loss/depth", "loss/normal", "loss/edge", "loss/adversarial"} <= first["losses"][0].keys()
    assert tool.difference(first, second) == "identical"
    second["losses"][1]["loss/depth"] += 1e-7
    assert tool.difference(first, second).startswith("DIFFERS from step 2 on")
    assert tool.difference(first, {**first, "weights": "0"}) == "DIFFERS in its weights"


def test_weights_are_hashed_whatever_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("loss_trace")
    one, other = torch.arange(3.0), torch.ones(2)
    assert tool.weights_hash({"a": one, "b": [other]}) == tool.weights_hash({"x": {"b": other}, "y": one})
    assert tool.weights_hash({"a": one}) != tool.weights_hash({"a": one + 1})
