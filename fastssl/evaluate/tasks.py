"""Depth, normals and contours on held-out renders: the trained network beside a constant and the untrained network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastssl.batch import PLANES, Batch, Task
from fastssl.errors import DataError, UsageError
from fastssl.evaluate.metrics import ContourMetrics, DepthMetrics, Metrics, NormalMetrics
from fastssl.evaluate.results import keep_results
from fastssl.evaluate.subject import every_sample, run_subject
from fastssl.loader import Domain
from fastssl.pictures import prediction_sheet

log = logging.getLogger(__name__)

_SHOWN = 8
"""Rows of the picture."""

Predictor = Callable[[Batch], dict[str, Tensor]]
"""A batch to depth (m), normal (unit) and edge (probability), the shapes of the batch's planes."""


Results = dict[Task, dict[str, dict[str, float | None]]]
"""Values by task, metric and predictor; None where a metric has none."""


def evaluate_tasks(run: Path, synthetic: str | PathLike[str]) -> Results:
    """Measure the tasks of a run on a held-out synthetic dataset.

    Writes `tasks.TASK.METRIC.{trained,untrained,constant}` into the run's summary and `samples/tasks.png`. A metric
    that has no value, as that of depth where no depth is known, is None, and a warning says why.

    Args:
        run: the run folder.
        synthetic: packed dataset with labels that the run was not trained on, a folder or an address.

    Raises:
        DataError: no run there, a dataset without labels or of photos, none that any task could be measured on, or the
            training data are not those of the run.
    """
    trained = run_subject(run)
    if trained.predict is None:
        raise UsageError("the run learnt none of these tasks", where=run, seen=f"method {trained.config.method}")
    images = trained.domain("synthetic", synthetic, PLANES)
    untrained = trained.untrained()
    assert untrained.predict is not None  # of the same method
    predictors = {
        "trained": _of_images(trained.predict),
        "untrained": _of_images(untrained.predict),
        "constant": fit_constant(every_sample(trained.training_domain("synthetic", PLANES))),
    }
    metrics = {name: measure(predictor, images, trained.tasks) for name, predictor in predictors.items()}
    _say_what_lacks(metrics, images)
    results = {name: {task: found.result() for task, found in tasks.items()} for name, tasks in metrics.items()}
    tasks: Results = {
        task: {metric: {name: results[name][task][metric] for name in results} for metric in results["trained"][task]}
        for task in trained.tasks
    }
    keep_results(run, {"tasks": tasks}, {"tasks.png": _sheet(trained.predict, images)})
    return tasks


@torch.no_grad()
def _sheet(predict: Callable[[Tensor], dict[str, Tensor]], images: Domain) -> Image.Image:
    with every_sample(images) as batches:
        batch = next(batches)
    shown = batch.image[:_SHOWN]
    predicted = {task: values.cpu().numpy() for task, values in predict(shown).items()}
    truth = {task: batch.targets[task][:_SHOWN].float().cpu().numpy() for task in predicted}
    return prediction_sheet(shown.float().cpu().numpy(), truth, predicted)


def _say_what_lacks(metrics: Mapping[str, Mapping[Task, Metrics]], images: Domain) -> None:
    lacks = {name: {task: found.lack for task, found in tasks.items()} for name, tasks in metrics.items()}
    whys = [why for why in lacks["trained"].values() if why is not None]
    if len(whys) == len(lacks["trained"]):
        seen = "; ".join(dict.fromkeys(whys))
        raise DataError("no task of the run can be measured on these images", where=images.samples.path, seen=seen)
    for task, trained in lacks["trained"].items():
        for name, why in ((name, lacks[name][task]) for name in lacks):
            if name == "constant" and why is not None and trained is None:
                why = "no pixel of the training images is valid, so there is none"
            if why is not None:
                log.warning("%s (%s) has no value: %s", task, name, why)


@torch.no_grad()
def measure(predictor: Predictor, images: Domain, tasks: Sequence[Task]) -> dict[Task, Metrics]:
    """The metrics of each task over a domain. A task that is not predicted has no values."""
    depth, normal, edge = DepthMetrics(), NormalMetrics(), ContourMetrics()
    with every_sample(images) as batches:
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


def fit_constant(batches: Iterator[Batch]) -> Predictor:
    """The best predictor that does not look at the image: one depth, one normal and one probability everywhere.

    The mean depth has the least RMSE of all constants, the mean normal the least mean cosine error, and any constant
    probability marks all pixels or none. Where no pixel is valid there is no best depth and no best normal, and none is
    predicted.
    """
    sums: dict[str, Tensor] = {}
    for batch in batches:
        valid = batch.valid
        found = {
            "depth": (batch.depth * valid).sum(),
            "normal": (batch.normal * valid).sum(dim=(0, 2, 3)),
            "valid": valid.sum(),
            "edge": batch.edge.sum(),
            "pixels": torch.tensor(batch.edge.numel(), device=valid.device),
        }
        sums = {name: sums.get(name, 0) + value.double() for name, value in found.items()}
    depth = sums["depth"] / sums["valid"]
    normal = functional.normalize(sums["normal"], dim=0)
    edge = sums["edge"] / sums["pixels"]
    some_valid = bool(sums["valid"] > 0)

    def predict(batch: Batch) -> dict[str, Tensor]:
        predicted = {"edge": edge.expand_as(batch.edge)}
        if some_valid:
            predicted["depth"] = depth.expand_as(batch.depth)
            predicted["normal"] = normal[None, :, None, None].expand_as(batch.normal)
        return predicted

    return predict


def _of_images(predict: Callable[[Tensor], dict[str, Tensor]]) -> Predictor:
    return lambda batch: predict(batch.image)
