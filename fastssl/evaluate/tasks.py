"""Depth, normals and contours on held-out renders: the trained network beside a constant and the untrained network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastssl.addresses import masked
from fastssl.batch import PLANES, Batch, Task
from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.evaluate.evaluation import Dataset, Measured, Metric, Row, Sheet
from fastssl.evaluate.subject import Subject, every_sample, statistics_of
from fastssl.loader import Domain
from fastssl.methods import METHODS
from fastssl.metrics import PLANE_METRICS, Metrics, plane_metrics
from fastssl.metrics.planes import Predictor
from fastssl.pictures import prediction_sheet

log = logging.getLogger(__name__)

_SHOWN = 8
"""Rows of the picture."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Depth, normals and contours on held-out renders, beside a constant and the untrained network."""

    name: ClassVar[str] = "tasks"
    title: ClassVar[str] = "Held-out predictions"
    note: ClassVar[str] = (
        "Predictions of each task on rendered images that the network has not seen. Constant is one depth, one normal "
        "and one contour probability, fitted on the training images. Trained reestimated has batch norms with the "
        "statistics of the images that are predicted here, without their labels; trained has those of the training."
    )
    sheet: ClassVar[Sheet | None] = Sheet(
        "tasks.png",
        "Held-out rendered images in rows: the image, then the ground truth and the prediction of every task",
        "Rendered images that the network has not seen. Depth is light where near and dark where far. Normals are red "
        "where they point right, green where up, blue towards the viewer. Contours are dark where certain. Gray pixels "
        "of the ground truth are not known.",
    )
    metrics: ClassVar[tuple[Metric, ...]] = PLANE_METRICS

    synthetic: Annotated[Dataset, "Packed dataset of held-out rendered images: a folder or an address."]

    @staticmethod
    def lack(config: Config) -> str:
        """The tasks, where the method is not `Dense`."""
        predicts = hasattr(METHODS.get(config.method), "predict")
        return "" if predicts else "The method of this run predicts neither depth nor normals nor contours."

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Measure the tasks that the subject has learnt.

        A metric that has no value, as that of depth where no depth is known, is None, and a warning says why.

        Raises:
            DataError: a dataset without labels or of photos, none that any task could be measured on, or the training
                data are not those of the run.
            UsageError: a subject beside it has learnt no task.
        """
        images = subject.domain("synthetic", self.synthetic, PLANES)
        training = subject.training_domain("synthetic", PLANES)
        if images.fingerprint == training.fingerprint:
            log.warning("%s is what the run was trained on, and not held out", images.samples.path)
        again = subject.reestimated(images)
        subjects = [subject, *([again] if again else []), *beside, *subject.baselines()]
        metrics = {
            one.name: measure(_predictor(one), one.sees(images), [task for task in subject.tasks if task in one.tasks])
            for one in subjects
        }
        constant = fit_constant(every_sample(training))
        metrics["constant"] = measure(constant, images, subject.tasks)
        _say_what_lacks(subject.name, metrics, images)
        results = {name: {task: found.result() for task, found in tasks.items()} for name, tasks in metrics.items()}
        rows = [
            Row(metric, {name: found[task][value] for name, found in results.items() if task in found})
            for metric in self.metrics
            for task, value in [metric.path]
            if task in subject.tasks
        ]
        conditions = {
            "synthetic": masked(str(self.synthetic)),
            "images": len(images.samples),
            "size": subject.config.data.size,
            "statistics": statistics_of(subject, subjects),
        }
        return Measured(rows=rows, conditions=conditions, pictures={"tasks.png": _sheet(subject, images)})


def _predictor(subject: Subject) -> Predictor:
    predict = subject.predict
    assert predict is not None  # `Tasks.lack` was asked
    return lambda batch: predict(batch.image)


@torch.no_grad()
def _sheet(subject: Subject, images: Domain) -> Image.Image:
    assert subject.predict is not None  # it was measured
    with every_sample(images) as batches:
        batch = next(batches)
    shown = batch.image[:_SHOWN]
    predicted = {task: values.cpu().numpy() for task, values in subject.predict(shown).items()}
    truth = {task: batch.targets[task][:_SHOWN].float().cpu().numpy() for task in predicted}
    return prediction_sheet(shown.float().cpu().numpy(), truth, predicted)


def _say_what_lacks(subject: str, metrics: Mapping[str, Mapping[Task, Metrics]], images: Domain) -> None:
    lacks = {name: {task: found.lack for task, found in tasks.items()} for name, tasks in metrics.items()}
    whys = [why for why in lacks[subject].values() if why is not None]
    if len(whys) == len(lacks[subject]):
        seen = "; ".join(dict.fromkeys(whys))
        raise DataError("no task of the run can be measured on these images", where=images.samples.path, seen=seen)
    for task, own in lacks[subject].items():
        for name, why in ((name, of_tasks[task]) for name, of_tasks in lacks.items() if task in of_tasks):
            if name == "constant" and why is not None and own is None:
                why = "no pixel of the training images is valid, so there is none"
            if why is not None:
                log.warning("%s (%s) has no value: %s", task, name, why)


def measure(predictor: Predictor, images: Domain, tasks: Sequence[Task]) -> dict[Task, Metrics]:
    """The metrics of each task over a domain. A task that is not predicted has no values."""
    with every_sample(images) as batches:
        return plane_metrics(predictor, batches, tasks)


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
