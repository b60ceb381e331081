"""Metrics over valid pixels, pooled over all images of a dataset, in memory that does not grow with it.

A metric without a value is None, never a zero or NaN that looks measured; `lack` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.batch import Batch, Task
from fastssl.metrics.metric import Better, Metric

CONTOUR_TOLERANCE_PX = 2
THRESHOLDS = 99
_ANGLE_BINS_PER_DEGREE = 100
_DEPTH_SUMS = 5


class Metrics(Protocol):
    """The metrics of one task."""

    def result(self) -> dict[str, float | None]:
        """The metrics by their names; None where `lack` says that there is no value."""

    @property
    def lack(self) -> str | None:
        """The reason why there are no values; None where there are."""


_NO_PIXEL = "no pixel of these images has both a known depth and a known normal"


def _unusable(count: int, kind: str = "not finite") -> str | None:
    return f"{count} predicted values are {kind}" if count else None


class DepthMetrics:
    """Depth errors as of Eigen et al. 2014: means over valid pixels of all images."""

    def __init__(self) -> None:
        self._sums = torch.zeros(_DEPTH_SUMS, dtype=torch.float64)
        self._bad = 0

    def add(self, predicted: Tensor, depth: Tensor, valid: Tensor) -> None:
        """Add a batch: `predicted` and `depth` (N, 1, S, S) metres, `valid` (N, 1, S, S) bool."""
        p, d = predicted[valid].double().cpu(), depth[valid].double().cpu()
        sound = p.isfinite() & (p > 0)
        self._bad += int((~sound).sum())
        p, d = p[sound], d[sound]
        log_error = p.log() - d.log()
        within = torch.maximum(p / d, d / p) < 1.25
        terms = ((p - d).abs() / d, (p - d) ** 2, log_error**2, within.double(), torch.ones_like(d))
        self._sums += torch.stack([term.sum() for term in terms])

    @property
    def lack(self) -> str | None:
        """The reason why there are no values; None where there are."""
        return _unusable(self._bad, "not finite or not positive") or (None if self._sums[-1] else _NO_PIXEL)

    def result(self) -> dict[str, float | None]:
        """`abs_rel`, `rmse` (m), `log_rmse` (natural logarithm), `delta_1.25` (fraction of pixels)."""
        if self.lack:
            return dict.fromkeys(("abs_rel", "rmse", "log_rmse", "delta_1.25"))
        abs_rel, square, log_square, within = (self._sums[:-1] / self._sums[-1]).tolist()
        return {"abs_rel": abs_rel, "rmse": square**0.5, "log_rmse": log_square**0.5, "delta_1.25": within}


class NormalMetrics:
    """Angles between predicted and true normals, pooled over the valid pixels of all images (MarrRevisited)."""

    def __init__(self) -> None:
        self._histogram = torch.zeros(180 * _ANGLE_BINS_PER_DEGREE, dtype=torch.int64)
        self._sum = 0.0
        self._within = torch.zeros(3, dtype=torch.int64)
        self._bad = 0

    def add(self, predicted: Tensor, normal: Tensor, valid: Tensor) -> None:
        """Add a batch: `predicted` and `normal` (N, 3, S, S) unit vectors, `valid` (N, 1, S, S) bool."""
        cosine = (predicted.double() * normal.double()).sum(dim=1)[valid[:, 0]].cpu()
        sound = cosine.isfinite()
        self._bad += int((~sound).sum())
        angle = torch.rad2deg(torch.acos(cosine[sound].clamp(-1, 1)))
        bins = (angle * _ANGLE_BINS_PER_DEGREE).long().clamp(max=len(self._histogram) - 1)
        self._histogram += torch.bincount(bins, minlength=len(self._histogram))
        self._sum += float(angle.sum())
        self._within += torch.stack([(angle < limit).sum() for limit in (11.25, 22.5, 30.0)])

    @property
    def lack(self) -> str | None:
        """The reason why there are no values; None where there are."""
        return _unusable(self._bad) or (None if self._histogram.any() else _NO_PIXEL)

    def result(self) -> dict[str, float | None]:
        """`mean`, `median` (degrees; the median to 0.01) and the fractions of pixels `within_11.25`, `_22.5`, `_30`."""
        if self.lack:
            return dict.fromkeys(("mean", "median", "within_11.25", "within_22.5", "within_30"))
        count = int(self._histogram.sum())
        half = int(torch.searchsorted(self._histogram.cumsum(0), (count + 1) // 2))
        fractions = (self._within / count).tolist()
        return {
            "mean": self._sum / count,
            "median": (half + 0.5) / _ANGLE_BINS_PER_DEGREE,
            **{f"within_{limit}": fraction for limit, fraction in zip(("11.25", "22.5", "30"), fractions, strict=True)},
        }


class ContourMetrics:
    """The best F-measure over one threshold for the whole dataset, with a tolerance of 2 pixels.

    A predicted pixel is right if a true contour lies within the tolerance, a true one is found if a predicted one does.
    Predictions are not thinned.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(THRESHOLDS, 4, dtype=torch.float64)  # right, predicted, found, true
        self._bad = 0

    def add(self, probability: Tensor, edge: Tensor) -> None:
        """Add a batch: `probability` and `edge` (N, 1, S, S) in 0..1."""
        self._bad += int((~probability.isfinite()).sum())
        true = edge > 0.5
        near_true = _grown(true)
        for line, threshold in enumerate(self.thresholds().tolist()):
            predicted = probability >= threshold
            counts = (predicted & near_true, predicted, true & _grown(predicted), true)
            self._counts[line] += torch.stack([count.sum() for count in counts]).double().cpu()

    @staticmethod
    def thresholds() -> Tensor:
        return torch.arange(1, THRESHOLDS + 1) / (THRESHOLDS + 1)

    @property
    def lack(self) -> str | None:
        """The reason why there are no values; None where there are."""
        return _unusable(self._bad) or (None if self._counts[:, 3].any() else "no pixel of these images is a contour")

    def result(self) -> dict[str, float | None]:
        """`f`, and the `threshold`, `precision` and `recall` it is reached with."""
        if self.lack:
            return dict.fromkeys(("f", "threshold", "precision", "recall"))
        right, predicted, found, true = self._counts.unbind(1)
        precision = right / predicted.clamp(min=1)
        recall = found / true.clamp(min=1)
        f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        best = int(f.argmax())
        names = ("f", "threshold", "precision", "recall")
        return {
            name: float(values[best])
            for name, values in zip(names, (f, self.thresholds(), precision, recall), strict=True)
        }


def _grown(mask: Tensor) -> Tensor:
    """Pixels at most `CONTOUR_TOLERANCE_PX` away from one that is set, in a straight line."""
    reach = torch.arange(-CONTOUR_TOLERANCE_PX, CONTOUR_TOLERANCE_PX + 1, device=mask.device)
    disk = (reach[:, None] ** 2 + reach[None, :] ** 2 <= CONTOUR_TOLERANCE_PX**2).float()
    return functional.conv2d(mask.float(), disk[None, None], padding=CONTOUR_TOLERANCE_PX) > 0.5


Predictor = Callable[[Batch], dict[str, Tensor]]
"""A batch to depth (m), normal (unit) and edge (probability), the shapes of the batch's planes."""


@torch.no_grad()
def plane_metrics(predictor: Predictor, batches: Iterable[Batch], tasks: Sequence[Task]) -> dict[Task, Metrics]:
    """The metrics of each task over some batches. A task that is not predicted has no values."""
    depth, normal, edge = DepthMetrics(), NormalMetrics(), ContourMetrics()
    for batch in batches:
        predicted = predictor(batch)
        if "depth" in predicted:
            depth.add(predicted["depth"], batch.depth, batch.valid)
        if "normal" in predicted:
            normal.add(predicted["normal"], batch.normal, batch.valid)
        if "edge" in predicted:
            edge.add(predicted["edge"], batch.edge)
    metrics: dict[Task, Metrics] = {"depth": depth, "normal": normal, "edge": edge}
    return {task: metrics[task] for task in tasks}


_GROUPS: dict[Task, str] = {"depth": "Depth", "normal": "Surface normals", "edge": "Object contours"}


def _metric(
    task: Task, name: str, words: str, key: str = "", *, unit: str = "", better: Better = "", digits: int | None = None
) -> Metric:
    digits = digits or (1 if unit == "degrees" else 3)
    return Metric(path=(task, name), name=words, group=_GROUPS[task], key=key, unit=unit, better=better, digits=digits)


def _fraction(task: Task, name: str, words: str) -> Metric:
    return Metric(
        path=(task, name),
        name=words,
        group=_GROUPS[task],
        unit="% of pixels",
        better="higher",
        digits=1,
        factor=100,
    )


PLANE_METRICS: tuple[Metric, ...] = (
    _metric("depth", "rmse", "Root mean square error", "Depth error, RMS", unit="m", better="lower"),
    _metric("depth", "log_rmse", "Root mean square error of log depth", better="lower"),
    _metric("depth", "abs_rel", "Absolute relative error", better="lower"),
    _fraction("depth", "delta_1.25", "Within 1.25 times the truth"),
    _metric("normal", "mean", "Mean angle to the truth", "Normal error, mean", unit="degrees", better="lower"),
    _metric("normal", "median", "Median angle to the truth", unit="degrees", better="lower"),
    _fraction("normal", "within_11.25", "Within 11.25 degrees"),
    _fraction("normal", "within_22.5", "Within 22.5 degrees"),
    _fraction("normal", "within_30", "Within 30 degrees"),
    _metric("edge", "f", "F-measure at its best threshold", "Contour F-measure", better="higher"),
    # None of these is better by itself: marking every pixel has a recall of 1.
    _metric("edge", "precision", "Precision at that threshold"),
    _metric("edge", "recall", "Recall at that threshold"),
    _metric("edge", "threshold", "Best threshold", digits=2),
)
"""What there is of each task, in the order in which it is shown."""
