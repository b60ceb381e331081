"""How far a number may be off because so few images were measured: 95 % intervals.

They know of the images alone. Another seed of the training moves a number too, and no interval here says by how much.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap
from torch import Tensor

Interval = tuple[float, float]
"""The lower and the upper end."""

DRAWS = 2000
"""Times that a bootstrap draws the photographs anew."""
_DRAWN_AT_ONCE = 1 << 22


def wilson_interval(right: int, count: int) -> Interval:
    """Of a fraction of independent images: Wilson's score interval, which keeps a width where all or none are right."""
    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def balanced_interval(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """Of the mean of two fractions of independent images, each as (right, count).

    Wilson's limits, squared and added, as method 10 of R. G. Newcombe, *Statistics in Medicine* 17, 1998, does for a
    difference of two fractions.
    """
    fractions = [right / count for right, count in (first, second)]
    limits = [wilson_interval(right, count) for right, count in (first, second)]
    below, above = (
        math.hypot(*(fraction - limit[end] for fraction, limit in zip(fractions, limits, strict=True))) / 2
        for end in (0, 1)
    )
    mean = sum(fractions) / 2
    return mean - below, mean + above


def bootstrap_interval(right: Tensor, counts: Tensor, groups: Tensor) -> Interval | None:
    """Of a fraction over all images: 95 % of what comes out where whole groups of images are drawn again and again.

    Images of a group, such as crops of one photograph, are no independent witnesses, so they are drawn together. The
    draws depend on the number of groups alone, so all fractions of the same images see the same ones.

    Args:
        right: (N,), of each image what is right.
        counts: (N,), of each image what could be right.
        groups: (N,) int64, the group of each image.

    Returns:
        None where there is a single group, of which nothing can be drawn.
    """
    names, place = groups.unique(return_inverse=True)
    if len(names) < 2:
        return None
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    sums.index_add_(1, place, torch.stack([right.double(), counts.double()]))
    found = bootstrap(
        sums.numpy(),
        _fraction,
        paired=True,
        vectorized=True,
        n_resamples=DRAWS,
        method="percentile",
        batch=max(1, _DRAWN_AT_ONCE // len(names)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _fraction(right: NDArray[np.float64], counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    fractions: NDArray[np.float64] = right.sum(axis=axis) / counts.sum(axis=axis)
    return fractions
