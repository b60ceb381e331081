"""The study of shifts: images change and labels do not; correlations beyond the average; shares of a gap."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from made_run import make_run

from fastssl.batch import PLANES, Intrinsics, Record
from fastssl.evaluate.subject import every_sample, run_subject

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("domain_shift")


def record(seed: int) -> Record:
    random = np.random.default_rng(seed)
    normal = np.zeros((48, 64, 3), np.float32)
    normal[..., 2] = -1
    return Record(
        key="a",
        image=random.integers(0, 256, (48, 64, 3), dtype=np.uint8),
        depth=np.full((48, 64), 2.0, np.float32),
        normal=normal,
        instance=np.repeat([[0] * 32 + [1] * 32], 48, axis=0).astype(np.int32),
        camera=Intrinsics(fx=60, fy=60, cx=32, cy=24),
    )


@pytest.mark.parametrize("name", ["camera", "negative", "flat"])
def test_a_change_gives_another_image_and_the_same_one_each_time(study: ModuleType, name: str) -> None:
    change = getattr(study, name)
    first, again, other = (change(record(0), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    assert first.shape == (48, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)  # noise
    assert not np.array_equal(first, record(0).image)


def test_a_negative_is_dark_where_the_image_is_bright(study: ModuleType) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (48, 64, 3)).astype(np.uint8)
    columns = study.negative(replace(record(0), image=ramp), np.random.default_rng(0)).mean(axis=(0, 2))
    assert np.corrcoef(columns, np.arange(64))[0, 1] < -0.95


def test_the_plain_renderer_sees_labels_alone_and_one_gray_for_each_object(study: ModuleType) -> None:
    made = [study.flat(record(seed), np.random.default_rng(0)) for seed in (0, 1)]
    assert np.array_equal(*made)
    left, right = made[0][:, :30, 0].astype(float), made[0][:, 34:, 0].astype(float)
    assert max(left.std(), right.std()) < 3 < abs(left.mean() - right.mean())


def test_what_goes_beyond_the_average_is_a_correlation(
    study: ModuleType, coded_synthetic: Path, tmp_path: Path
) -> None:
    """Of predictions that are the truth, the truth shrunk to the average, or its mirror about it."""
    subject = run_subject(make_run(tmp_path / "run", coded_synthetic, None, "model.adapted_layer=none"))
    images = subject.domain("synthetic", coded_synthetic, PLANES)
    average = study.pixel_averages(images)
    with every_sample(images) as batches:
        (batch,) = batches  # eleven images
    truth = {task: batch.targets[task].numpy() for task in average}

    def scaled(factor: float) -> dict[str, float]:
        def predict(image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {task: torch.from_numpy(average[task] + factor * (truth[task] - average[task])) for task in truth}

        found: dict[str, float] = study.correlations(replace(subject, predict=predict), images, average)
        return found

    for factor, expected in ((1.0, 1), (0.1, 1), (-1.0, -1)):
        assert scaled(factor) == pytest.approx({"depth": expected, "normal": expected})


def test_the_share_of_a_gap_that_is_closed(study: ModuleType) -> None:
    def cell(depth: float) -> dict[str, Any]:
        return {"reestimated": {"depth": depth}}

    rows = {
        "source": {0: cell(1.0), 1: cell(1.2)},
        "target": {0: cell(0.6), 1: cell(0.8)},
        "no_norm": {0: cell(0.9), 1: cell(0.9)},
    }
    assert study._closed(rows, "no_norm", "depth") == "+50%"  # a quarter, and three quarters
    assert study._closed(rows, "source", "depth") == ""
    assert study._closed(rows | {"target": {0: cell(1.01), 1: cell(1.1)}}, "no_norm", "depth") == "no gap"
