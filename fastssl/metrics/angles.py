"""Angles between normals, all of them at once, in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LIMITS = {"within_11.25": 11.25, "within_22.5": 22.5, "within_30": 30.0}
"""Degrees."""


def angles_between(predicted: Tensor, truth: Tensor) -> Tensor:
    """Degrees between unit vectors: (N, 3) both, to (N,) float64."""
    cosine = (predicted.double() * truth.double()).sum(dim=1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def angle_statistics(degrees: NDArray[np.float64]) -> dict[str, float]:
    """`mean`, `median` (of an even number, the mean of the middle two) and the fractions below each of `LIMITS`.

    An angle of a limit itself is not below it. `NormalMetrics` gives the same, with a median to 0.01 degrees, in memory
    that does not grow; here each angle takes 8 bytes, and twice that while the median is looked for.

    Args:
        degrees: (N,), one or more.

    Source: the evaluation code of Bansal et al., *Marr Revisited*, CVPR 2016.
    """
    found = {"mean": float(degrees.mean()), "median": float(np.median(degrees))}
    return found | {name: float((degrees < limit).mean()) for name, limit in LIMITS.items()}
