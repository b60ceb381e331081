"""Average precisions beside rankings by hand and beside plain loops; scikit-learn's, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from fastssl.metrics import (
    average_precision,
    average_precision_11_points,
    interpolated_area,
    interpolated_at_11_points,
)

Numbers = NDArray[np.float64]
Bools = NDArray[np.bool_]


def by_thresholds(scores: Numbers, positives: Bools) -> float:
    """The definition in scikit-learn's guide: the sum of (R_n - R_(n-1)) P_n over the thresholds, highest first."""
    scores = scores - 1e-5 * positives
    found, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        hits = int((taken & positives).sum())
        found += (hits / positives.sum() - recall) * hits / taken.sum()
        recall = hits / positives.sum()
    return found


def by_scikit_learn(scores: Numbers, positives: Bools) -> float:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not among the packages of tests")
    return float(metrics.average_precision_score(positives, scores - 1e-5 * positives))


@pytest.mark.parametrize("expected", [by_thresholds, by_scikit_learn])
def test_it_is_scikit_learns(expected: Callable[[Numbers, Bools], float]) -> None:
    """Random rankings, with many ties and without."""
    generator = np.random.default_rng(0)
    for number in range(200):
        count = int(generator.integers(1, 40))
        scores = generator.integers(0, 6, count).astype(float) if number % 2 else generator.normal(size=count)
        positives = generator.random(count) < generator.random()
        positives[generator.integers(count)] = True
        assert average_precision(scores, positives) == pytest.approx(expected(scores, positives), abs=1e-12)


def at_11_points(right: list[bool], positives: int) -> Fraction:
    """VOC's own loop over t = 0, 0.1, ... 1, in fractions."""
    hits = [sum(right[: place + 1]) for place in range(len(right))]
    found = Fraction(0)
    for t in (Fraction(tenths, 10) for tenths in range(11)):
        precisions = [Fraction(n, place + 1) for place, n in enumerate(hits) if Fraction(n, positives) >= t]
        found += max(precisions, default=Fraction(0)) / 11
    return found


def below_the_curve(right: list[bool], positives: int) -> Fraction:
    """VOCap: sentinels, an envelope from behind, and rectangles, in fractions."""
    hits = [sum(right[: place + 1]) for place in range(len(right))]
    recalls = [Fraction(0), *(Fraction(n, positives) for n in hits), Fraction(1)]
    precisions = [Fraction(0), *(Fraction(n, place + 1) for place, n in enumerate(hits)), Fraction(0)]
    for place in reversed(range(len(precisions) - 1)):
        precisions[place] = max(precisions[place], precisions[place + 1])
    pairs = zip(recalls, recalls[1:], precisions[1:], strict=False)
    return sum(((after - before) * precision for before, after, precision in pairs), Fraction(0))


def test_interpolated_ones_are_vocs_own_loops() -> None:
    """Random detections, of which some objects have none; ten positives make recalls that meet each tenth."""
    generator = np.random.default_rng(1)
    for number in range(200):
        right = (generator.random(generator.integers(0, 30)) < 0.5).tolist()
        positives = 10 if number % 2 and sum(right) <= 10 else sum(right) + int(generator.integers(1, 4))
        assert interpolated_at_11_points(right, positives) == pytest.approx(float(at_11_points(right, positives)))
        assert interpolated_area(right, positives) == pytest.approx(float(below_the_curve(right, positives)))


def test_by_hand() -> None:
    positives = [True, False, True, False]
    assert average_precision([4, 3, 2, 1], positives) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert average_precision_11_points([4, 3, 2, 1], positives) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert interpolated_area([True, False, True, False], 2) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    # All alike: what is wrong comes first, and positives come in at once.
    assert average_precision([0, 0, 0, 0], positives) == pytest.approx(2 / 4)
    assert average_precision_11_points([0, 0, 0, 0], positives) == pytest.approx(2 / 4)
    assert average_precision([1, 1], [True, True]) == 1
    assert interpolated_area([], 3) == interpolated_at_11_points([], 3) == 0
    for measure in (average_precision, average_precision_11_points):
        with pytest.raises(ValueError, match="needs a positive"):
            measure([1, 2], [False, False])
