"""Intervals against their definition, against a bootstrap in NumPy, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.metrics import balanced_interval, bootstrap_interval
from fastssl.metrics.intervals import wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 7), (7, 7), (81, 120), (1, 1)])
def test_the_ends_of_wilson_s_interval_lie_as_far_as_95_percent_reach(right: int, count: int) -> None:
    """The score of an end, (f - p) / sqrt(p (1 - p) / n), is 1.96; an end at 0 or 1 is the fraction itself."""
    fraction, ends = right / count, wilson_interval(right, count)
    for end, sign in zip(ends, (1, -1), strict=True):
        if end in (0, 1) or end == pytest.approx(fraction):
            assert end == pytest.approx(fraction)
        else:
            assert sign * (fraction - end) / np.sqrt(end * (1 - end) / count) == pytest.approx(1.95996, abs=1e-3)
    assert wilson_interval(0, 7)[1] == pytest.approx(3.8415 / 10.8415, abs=1e-4)


@pytest.mark.parametrize("truth", [(0.5, 0.5), (0.9, 0.7), (0.97, 0.97)])
def test_a_balanced_interval_holds_the_truth_in_95_of_100_draws(truth: tuple[float, float]) -> None:
    rng, counts, held = np.random.default_rng(0), (40, 60), []
    for _ in range(3000):
        first, second = (int(rng.binomial(count, p)) for count, p in zip(counts, truth, strict=True))
        low, high = balanced_interval((first, counts[0]), (second, counts[1]))
        held.append(low <= sum(truth) / 2 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_groups_are_drawn_together() -> None:
    """Against a bootstrap in NumPy; with groups of unequal size, and images that count differently."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(15), rng.integers(1, 9, 15))
    counts = rng.integers(50, 200, len(groups))
    right = np.stack([counts * (groups % 3 == 0), counts * rng.random(len(groups))], axis=1)
    draws = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(groups == pick) for pick in rng.integers(0, 15, 15)])
        draws.append(right[rows].sum(axis=0) / counts[rows].sum())
    expected = np.quantile(draws, [0.025, 0.975], axis=0).T
    order = rng.permutation(len(groups))
    given = torch.from_numpy(counts[order]), torch.from_numpy(100 - 7 * groups[order])
    for column, ends in zip(right.T, expected, strict=True):
        assert bootstrap_interval(torch.from_numpy(column[order]), *given) == pytest.approx(ends, abs=0.02)
    # Drawn one by one, the images of a group would seem to say more than they do.
    alone = bootstrap_interval(torch.from_numpy(right[:, 0]), torch.from_numpy(counts), torch.arange(len(groups)))
    assert alone is not None
    assert alone[1] - alone[0] < 0.8 * (expected[0][1] - expected[0][0])


def test_of_one_group_nothing_can_be_drawn() -> None:
    assert bootstrap_interval(torch.ones(5), torch.ones(5), torch.zeros(5, dtype=torch.int64)) is None
