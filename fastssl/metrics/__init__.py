"""What is measured of predictions and features, on batches and tensors that whoever measures has at hand.

Training measures with these between its steps, and evaluations when it has ended.
"""

from fastssl.metrics.angles import angle_statistics, angles_between
from fastssl.metrics.average_precision import (
    average_precision,
    average_precision_11_points,
    interpolated_area,
    interpolated_at_11_points,
)
from fastssl.metrics.features import PROBE_METRICS, TEMPERATURE, class_votes, knn_accuracy, pooled, rank_me
from fastssl.metrics.intervals import DRAWS, Interval, balanced_interval, bootstrap_interval, wilson_interval
from fastssl.metrics.metric import Better, Metric
from fastssl.metrics.planes import PLANE_METRICS, ContourMetrics, DepthMetrics, Metrics, NormalMetrics, plane_metrics

VALIDATION_METRICS = {
    **{"/".join(("tasks", *metric.path)): metric for metric in PLANE_METRICS},
    **{"/".join(("probe", *metric.path)): metric for metric in PROBE_METRICS},
}
"""All that a validation can give, by the names that it has there."""

__all__ = [
    "DRAWS",
    "PLANE_METRICS",
    "PROBE_METRICS",
    "TEMPERATURE",
    "VALIDATION_METRICS",
    "Better",
    "ContourMetrics",
    "DepthMetrics",
    "Interval",
    "Metric",
    "Metrics",
    "NormalMetrics",
    "angle_statistics",
    "angles_between",
    "average_precision",
    "average_precision_11_points",
    "balanced_interval",
    "bootstrap_interval",
    "class_votes",
    "interpolated_area",
    "interpolated_at_11_points",
    "knn_accuracy",
    "plane_metrics",
    "pooled",
    "rank_me",
    "wilson_interval",
]
