"""The meter against a clock that is set by hand."""

from __future__ import annotations

import pytest
import torch

from fastssl.train import trainer


def test_the_loader_s_start_is_not_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now)
    meter = trainer._Meter(torch.device("cpu"), first_step=0)
    now += 60  # the first batch, on a machine that compiles code for it
    meter.waited(60)
    loss = {"depth": torch.tensor(1.0)}
    for step, wait in enumerate((0, 1, 2), 1):
        if wait:
            now += wait
            meter.waited(wait)
        now += 3
        meter.add(loss, step, 8)
    values = meter.read()
    assert values["throughput/pairs_per_s"] == pytest.approx(24 / 12)
    assert values["throughput/data_wait_fraction"] == pytest.approx(3 / 12)
    assert values["time/step_ms"] == pytest.approx(4000)
    assert meter.summary()["throughput"] == {"pairs_per_s": pytest.approx(2), "data_wait_fraction": pytest.approx(0.25)}
    assert meter.summary()["limited_by"] == "data"
