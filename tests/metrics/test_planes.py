"""Against NumPy over all pixels at once, and distances worked out pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.metrics.planes import ContourMetrics, DepthMetrics, Metrics, NormalMetrics


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_depth_metrics_pool_the_valid_pixels_of_all_batches() -> None:
    predicted, depth = 0.5 + 3 * random(0, 6, 1, 9, 9), 0.5 + 3 * random(1, 6, 1, 9, 9)
    valid = random(2, 6, 1, 9, 9) < 0.7
    valid[0] = False
    metrics = DepthMetrics()
    for first in (0, 2, 5):
        part = slice(first, {0: 2, 2: 5, 5: 6}[first])
        metrics.add(predicted[part], depth[part], valid[part])
    p, d = predicted[valid].double().numpy(), depth[valid].double().numpy()
    ratio = p / d
    expected = {
        "abs_rel": np.mean(np.abs(p - d) / d),
        "rmse": np.sqrt(np.mean((p - d) ** 2)),
        "log_rmse": np.sqrt(np.mean((np.log(p) - np.log(d)) ** 2)),
        "delta_1.25": np.mean((ratio < 1.25) & (ratio > 0.8)),
    }
    assert metrics.result() == pytest.approx(expected, rel=1e-9)


def test_normal_metrics_of_known_rotations() -> None:
    """Normals turned by known angles about an axis at right angles to them."""
    angles = torch.tensor([0.0, 5.0, 11.0, 12.0, 22.0, 23.0, 29.5, 31.0, 90.0, 179.0]).double()
    radians = torch.deg2rad(angles)
    truth = torch.tensor([0.0, 0.0, -1.0]).double().expand(10, 3).T.reshape(1, 3, 1, 10)
    turned = torch.stack([radians.sin(), torch.zeros(10), -radians.cos()]).reshape(1, 3, 1, 10)
    metrics = NormalMetrics()
    metrics.add(turned, truth, torch.ones(1, 1, 1, 10, dtype=torch.bool))
    result = metrics.result()
    assert result["mean"] == pytest.approx(float(angles.mean()), abs=1e-4)
    assert result["median"] == pytest.approx(22.0, abs=0.01)
    assert result["within_11.25"] == pytest.approx(0.3)
    assert result["within_22.5"] == pytest.approx(0.5)
    assert result["within_30"] == pytest.approx(0.7)
    metrics.add(turned, turned, torch.zeros(1, 1, 1, 10, dtype=torch.bool))
    assert metrics.result() == result


def slow_f(probability: np.ndarray, edge: np.ndarray) -> float:
    """Best F over thresholds by comparing every predicted with every true pixel."""
    best = 0.0
    for threshold in np.arange(1, 100) / 100:
        predicted_at = [np.argwhere(image >= np.float32(threshold)) for image in probability]
        true_at = [np.argwhere(image > 0.5) for image in edge]
        right = found = 0
        for p, t in zip(predicted_at, true_at, strict=True):
            if len(p) and len(t):
                near = ((p[:, None] - t[None]) ** 2).sum(axis=-1) <= 4
                right += int(near.any(axis=1).sum())
                found += int(near.any(axis=0).sum())
        predicted, true = sum(map(len, predicted_at)), sum(map(len, true_at))
        precision, recall = right / max(predicted, 1), found / max(true, 1)
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-12))
    return best


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.02, 0.2]))
def test_contour_f_against_all_pairs(seed: int, density: float) -> None:
    probability = random(seed, 3, 1, 12, 15)
    edge = (random(seed + 1, 3, 1, 12, 15) < density).float()
    metrics = ContourMetrics()
    metrics.add(probability[:2], edge[:2])
    metrics.add(probability[2:], edge[2:])
    assert metrics.result()["f"] == pytest.approx(slow_f(probability[:, 0].numpy(), edge[:, 0].numpy()), abs=1e-9)


def test_contour_tolerance_is_two_pixels() -> None:
    edge = torch.zeros(1, 1, 11, 11)
    edge[..., 5] = 1
    for shift, expected in ((2, 1.0), (3, 0.0)):
        metrics = ContourMetrics()
        metrics.add(edge.roll(shift, dims=-1), edge)
        assert metrics.result()["f"] == pytest.approx(expected)


Case = tuple[Metrics, Callable[[Tensor], None], Tensor]
"""Metrics, a way to add predictions to them, and predictions that are right."""


def cases(valid: Tensor, edge: Tensor) -> dict[str, Case]:
    depth, normal = 0.5 + random(0, 2, 1, 6, 6), torch.nn.functional.normalize(random(1, 2, 3, 6, 6), dim=1)
    d, n, e = DepthMetrics(), NormalMetrics(), ContourMetrics()
    return {
        "depth": (d, lambda predicted: d.add(predicted, depth, valid), depth),
        "normal": (n, lambda predicted: n.add(predicted, normal, valid), normal),
        "edge": (e, lambda predicted: e.add(predicted, edge), edge),
    }


ALL, NONE = torch.ones(2, 1, 6, 6, dtype=torch.bool), torch.zeros(2, 1, 6, 6, dtype=torch.bool)


@pytest.mark.parametrize("task", ["depth", "normal", "edge"])
def test_without_a_pixel_there_is_no_value_and_a_reason(task: str) -> None:
    metrics, add, right = cases(NONE, NONE.float())[task]
    names = metrics.result().keys()
    add(right)
    assert metrics.result() == dict.fromkeys(names)
    assert str(metrics.lack).startswith("no pixel")
    metrics, add, right = cases(ALL, ALL.float())[task]
    add(right)
    assert metrics.lack is None
    assert metrics.result().keys() == names
    assert all(value is not None and np.isfinite(value) for value in metrics.result().values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("task", ["depth", "normal", "edge"])
def test_a_prediction_that_is_not_finite_gives_no_value_and_a_reason(task: str, bad: float) -> None:
    metrics, add, right = cases(ALL, ALL.float())[task]
    wrong = right.clone()
    wrong[0, :, 2, 3] = bad
    add(wrong)
    add(right)
    assert set(metrics.result().values()) == {None}
    assert "1 predicted values are not finite" in str(metrics.lack)


def test_a_depth_of_zero_has_no_logarithm() -> None:
    metrics, add, right = cases(ALL, ALL.float())["depth"]
    add(right * 0)
    assert "72 predicted values" in str(metrics.lack)
    unseen, add, right = cases(NONE, ALL.float())["depth"]
    add(right * 0)
    assert str(unseen.lack).startswith("no pixel")
