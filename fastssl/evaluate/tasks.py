"""Depth, normals and contours on held-out renders: the trained network beside a constant and the untrained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.batch import SyntheticBatch
from fastssl.config import Config, Task
from fastssl.evaluate.metrics import ContourMetrics, DepthMetrics, NormalMetrics
from fastssl.evaluate.networks import label_batches, trained_networks, untrained_networks
from fastssl.loader import Mixture, open_mixture
from fastssl.models import Networks
from fastssl.pictures import write_picture
from fastssl.telemetry import merge_summary
from fastssl.train.pictures import prediction_sheet

Predictor = Callable[[SyntheticBatch], dict[str, Tensor]]
"""A batch to depth (m), normal (unit) and edge (probability), the shapes of the batch's planes."""


def evaluate_tasks(run: Path, synthetic: Path) -> dict[Task, dict[str, dict[str, float]]]:
    """Measure the tasks of a run on a held-out synthetic dataset.

    Writes `tasks.TASK.METRIC.{trained,untrained,constant}` into the run's summary and `samples/tasks.png`.

    Args:
        run: the run folder.
        synthetic: packed dataset with labels that the run was not trained on.

    Raises:
        DataError: no run there, or a dataset without labels.
    """
    networks, config = trained_networks(run)
    shards = open_mixture(synthetic)
    predictors = {
        "trained": _network_predictor(networks),
        "untrained": _network_predictor(untrained_networks(config)),
        "constant": fit_constant(label_batches(config, open_mixture(config.data.synthetic))),
    }
    results = {name: measure(predictor, config, shards) for name, predictor in predictors.items()}
    tasks = {
        task: {metric: {name: results[name][task][metric] for name in results} for metric in results["trained"][task]}
        for task in config.model.tasks
    }
    merge_summary(run, {"tasks": tasks})
    sheet = prediction_sheet(networks, next(iter(label_batches(config, shards))), rows=8)
    write_picture(sheet, run / "samples" / "tasks.png")
    return tasks


@torch.no_grad()
def measure(predictor: Predictor, config: Config, shards: Mixture) -> dict[Task, dict[str, float]]:
    """The metrics of each task of `config` over a dataset."""
    depth, normal, edge = DepthMetrics(), NormalMetrics(), ContourMetrics()
    for batch in label_batches(config, shards):
        predicted = predictor(batch)
        if "depth" in predicted:
            depth.add(predicted["depth"], batch.depth, batch.valid)
        if "normal" in predicted:
            normal.add(predicted["normal"], batch.normal, batch.valid)
        if "edge" in predicted:
            edge.add(predicted["edge"], batch.edge)
    results = {"depth": depth.result(), "normal": normal.result(), "edge": edge.result()}
    return {task: results[task] for task in config.model.tasks}


def fit_constant(batches: Iterator[SyntheticBatch]) -> Predictor:
    """The best predictor that does not look at the image: one depth, one normal and one probability everywhere.

    The mean depth has the least RMSE of all constants, the mean normal the least mean cosine error, and any constant
    probability marks all pixels or none.
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

    def predict(batch: SyntheticBatch) -> dict[str, Tensor]:
        return {
            "depth": depth.expand_as(batch.depth),
            "normal": normal[None, :, None, None].expand_as(batch.normal),
            "edge": edge.expand_as(batch.edge),
        }

    return predict


def _network_predictor(networks: Networks) -> Predictor:
    def predict(batch: SyntheticBatch) -> dict[str, Tensor]:
        predicted = {task: raw.float() for task, raw in networks.heads(networks.backbone(batch.image)["fc7"]).items()}
        if "depth" in predicted:
            predicted["depth"] = predicted["depth"].exp()
        if "edge" in predicted:
            predicted["edge"] = predicted["edge"].sigmoid()
        return predicted

    return predict
