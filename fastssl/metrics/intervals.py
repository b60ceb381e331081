"""How far a number may be off because so few images were measured: 95 % intervals.

They know of the images alone. Another seed of the training moves a number too, and no interval here says by how much.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Interval = tuple[float, float]
"""The lower and the upper end."""

DRAWS = 2000
"""Times that a bootstrap draws the photographs anew."""
_SEED = 0
_Z = 1.959964
"""Of a normal distribution, 95 % lies within so many deviations."""
_DRAWN_AT_ONCE = 1 << 22


def wilson_interval(right: int, count: int) -> Interval:
    """Of a fraction of independent images: Wilson's score interval, which keeps a width where all or none are right."""
    fraction, z2 = right / count, _Z**2
    middle = (fraction + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(fraction * (1 - fraction) / count + z2 / (4 * count**2))
    return middle - half, middle + half


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


def bootstrap_intervals(right: Tensor, counts: Tensor, groups: Tensor) -> list[Interval] | None:
    """Of fractions over all images: 95 % of what comes out where whole groups of images are drawn again and again.

    Images of a group, such as crops of one photograph, are no independent witnesses, so they are drawn together. The
    draws depend on the number of groups alone, so all fractions see the same ones.

    Args:
        right: (N, K), of each image what is right, of K fractions.
        counts: (N,), of each image what could be right.
        groups: (N,) int64, the group of each image.

    Returns:
        K intervals; None where there is a single group, of which nothing can be drawn.
    """
    names, place = groups.unique(return_inverse=True)
    if len(names) < 2:
        return None
    both = torch.cat([right.double(), counts.double()[:, None]], dim=1)
    sums = torch.zeros(len(names), both.shape[1], dtype=torch.float64).index_add_(0, place, both)
    generator = torch.Generator().manual_seed(_SEED)
    drawn = []
    for draws in torch.ones(DRAWS).split(max(1, _DRAWN_AT_ONCE // len(names))):
        picks = torch.randint(len(names), (len(draws), len(names)), generator=generator)
        times = torch.zeros(picks.shape, dtype=torch.float64).scatter_add_(1, picks, torch.ones(picks.shape).double())
        drawn.append(times @ sums)
    total = torch.cat(drawn)
    low, high = torch.quantile(total[:, :-1] / total[:, -1:], torch.tensor([0.025, 0.975]).double(), dim=0).tolist()
    return list(zip(low, high, strict=True))
