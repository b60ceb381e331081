"""The study of the size of data: rooms apart, its table by hand, and results that are measured once."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("data_size")


def test_held_out_rooms_are_none_that_a_network_learns_from(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: dict[str, list[str]] = {}

    class Chosen:
        def __init__(self, source: object, keys: list[str]) -> None:
            self.keys = keys

    monkeypatch.setattr(study, "HELD_OUT", 4)
    monkeypatch.setattr(study, "Rooms", Chosen)
    monkeypatch.setattr(study, "rendered", lambda folder, count, workers: (None, [f"{n}" for n in range(count)]))
    monkeypatch.setattr(study, "pack_once", lambda rooms, out: packed.__setitem__(out.name, rooms.keys))
    study.prepare(Path("work"), [3, 10], 1)
    assert packed["3"] == ["0", "1", "2"]
    assert packed["10"] == [f"{n}" for n in range(10)]
    assert packed["held_out"] == ["10", "11", "12", "13"]
    assert set(packed["learnt"]) <= set(packed["3"])


def test_the_table_has_means_and_half_the_range(study: ModuleType) -> None:
    seeds = {seed: {"depth": depth, "normal": 30 + seed, "contour": 0.8} for seed, depth in enumerate((0.9, 1.0, 1.1))}
    assert study.table({1000: seeds}).splitlines()[2] == "| 1,000 | 1.000 ± 0.100 | 31.0 ± 1.0 | 0.800 ± 0.000 |"


def test_a_result_is_measured_once_and_kept_whole(study: ModuleType, tmp_path: Path) -> None:
    shared = importlib.import_module("rooms_study")
    made: list[int] = []

    def measure() -> dict[str, Any]:
        made.append(1)
        if len(made) == 1:
            raise KeyboardInterrupt
        return {"depth": 1.5}

    path = tmp_path / "cells" / "one.json"
    with pytest.raises(KeyboardInterrupt):
        shared._measured(path, measure)
    assert not path.exists()
    assert shared._measured(path, measure) == shared._measured(path, measure) == {"depth": 1.5}
    assert len(made) == 2
    assert json.loads(path.read_text()) == {"depth": 1.5}


def test_a_method_is_timed_by_the_mean_of_its_calls(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = importlib.import_module("methods")
    now = [0.0]
    monkeypatch.setattr(methods.time, "perf_counter", lambda: now[0])
    calls = iter([0.125, 0.25, 0.375, 9.0])  # the third ends the turn of half a second
    assert methods._seconds(lambda: now.__setitem__(0, now[0] + next(calls))) == pytest.approx(0.25)
