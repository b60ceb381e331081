"""The meter against a clock that is set by hand."""

from __future__ import annotations

import pytest
import torch

from fastssl.ranks import Ranks
from fastssl.train import trainer


def test_the_loader_s_start_is_not_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now)
    meter = trainer._Meter(torch.device("cpu"), "pairs", Ranks())
    now += 60  # the first batch, on a machine that compiles code for it
    meter.waited(60)
    loss = {"depth": torch.tensor(1.0)}
    now += 30  # the first step, which tries which kernels are fastest
    meter.add(loss, 1, 8)
    for step, wait in enumerate((1, 2), 2):
        now += wait
        meter.waited(wait)
        now += 3
        meter.add(loss, step, 8)
    values = meter.read()
    assert values["throughput/pairs_per_s"] == pytest.approx(16 / 9)
    assert values["throughput/data_wait_fraction"] == pytest.approx(3 / 9)
    assert values["time/step_ms"] == pytest.approx(4500)
    told = {"pairs_per_s": pytest.approx(16 / 9), "data_wait_fraction": pytest.approx(3 / 9)}
    assert meter.summary()["throughput"] == told
    assert meter.summary()["limited_by"] == "data"


def test_a_first_step_alone_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else could be told of it; what follows leaves it out again."""
    now = 1000.0
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now)
    meter = trainer._Meter(torch.device("cpu"), "pairs", Ranks())
    assert meter.summary() == {}
    meter.waited(5)
    now += 4
    meter.add({"depth": torch.tensor(2.0)}, 1, 8)
    first = meter.read()
    assert (first["throughput/pairs_per_s"], first["time/step_ms"]) == (2.0, 4000.0)
    assert first["loss/depth"] == 2.0
    assert meter.summary()["throughput"] == {"pairs_per_s": 2.0, "data_wait_fraction": 0.0}
    meter.waited(0)
    now += 1
    meter.add({"depth": torch.tensor(4.0)}, 2, 8)
    assert meter.read()["throughput/pairs_per_s"] == 8.0
    assert meter.summary()["throughput"] == {"pairs_per_s": 8.0, "data_wait_fraction": 0.0}
