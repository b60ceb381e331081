"""Angles by hand, and random ones against NumPy by another formula than a cosine's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.metrics import angle_statistics, angles_between


def test_statistics_of_angles_by_hand() -> None:
    """An angle of a limit itself is not below it; the median of an even number lies between two."""
    found = angle_statistics(np.array([11.25, 0.0, 22.5, 10.0, 30.0, 90.0, 25.0, 29.0]))
    assert found == {
        "mean": pytest.approx(217.75 / 8, abs=1e-12),
        "median": pytest.approx(23.75, abs=1e-12),
        "within_11.25": 2 / 8,
        "within_22.5": 3 / 8,
        "within_30": 6 / 8,
    }
    assert angle_statistics(np.array([7.0, 1.0, 90.0]))["median"] == 7


def test_random_angles_against_numpy() -> None:
    """The angle is twice the arc sine of half the chord, in float64; it is exact where arc cosines are not."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1001, 3))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = a + rng.exponential(0.3, (1001, 1)) * b
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    expected = np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=1) / 2, 0, 1)))
    degrees = angles_between(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(degrees, expected, atol=1e-5)
    found = angle_statistics(degrees)
    assert found["mean"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert found["median"] == pytest.approx(np.sort(expected)[500], abs=1e-9)
    for limit in (11.25, 22.5, 30):
        assert found[f"within_{limit:g}"] == np.count_nonzero(expected < limit) / 1001
    same = torch.tensor([[0.6, 0.0, -0.8]]) * (1 + 1e-6)  # a cosine above 1
    assert angles_between(same, same).tolist() == [0]
    assert angles_between(same, -same).tolist() == [180]
