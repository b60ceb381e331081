"""Classes of VOC 2007: how well a network tells them that was fine-tuned from the features."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastssl.config import Config, shown
from fastssl.errors import DataError, UsageError
from fastssl.evaluate.classifier import Classifier
from fastssl.evaluate.evaluation import Measured, Metric, Row, Sheet
from fastssl.evaluate.fine_tuning import Training
from fastssl.evaluate.progress import Progress, progress_of
from fastssl.evaluate.protocol import deviations_of, protocol_of
from fastssl.evaluate.random_crops import CropBatches, Wanted
from fastssl.evaluate.subject import Subject
from fastssl.evaluate.voc_devkit import VOC_CLASSES, VocDevkit, chosen_classes
from fastssl.layers import rescaled
from fastssl.metrics import average_precision, average_precision_11_points
from fastssl.sources.regular import read_file
from fastssl.train import run_device

log = logging.getLogger(__name__)

PROGRESS = "voc_cls.pt"
"""In the run's folder, as long as networks learn."""
_PREDICTIONS = "predictions"
"""The column of scores that were made elsewhere."""
_TRAIN, _TEST = "trainval", "test"
_RESCALING_BATCHES = 10
_NO_PROTOCOL = ("devkit", "scores", "progress", "seed")
_LEAST_SIZE = 64


def _metric(*path: str, name: str, group: str, key: str = "") -> Metric:
    return Metric(path=path, name=name, group=group, key=key, unit="%", better="higher", digits=1, factor=100)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A split: its photos, and which classes each shows."""

    identities: Sequence[str]
    paths: Sequence[Path]
    labels: NDArray[np.int8]
    """(N, classes): 1, -1, or 0 where all objects of the class are difficult, which then does not count."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the photos of the test split by classes, (N, classes) float64."""

    all_crops: NDArray[np.float64]
    one_crop: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class VocClassification:
    """How well a network tells the classes of PASCAL VOC 2007 that was fine-tuned from the features.

    The protocol of Kraehenbuehl et al., Data-dependent Initializations of CNNs, ICLR 2016, as its code has it: a
    network like CaffeNet learns from random crops of trainval and is tested on ten of each photo of test. AlexNet has
    its fc6 and fc7, other backbones a linear layer on the mean of their last map. With --scores it scores predictions
    that were made elsewhere, and needs no RUN.
    """

    name: ClassVar[str] = "voc-cls"
    title: ClassVar[str] = "Classes of VOC 2007 after fine-tuning"
    note: ClassVar[str] = (
        "A network that began from the features learnt the classes of VOC 2007's trainval photos. Average precision is "
        "that of ranking the test photos by each class's score, not interpolated; the one at 11 points is VOC's of "
        "that year. Scores are summed over random crops. The settings that differ from the protocol's are under "
        "deviations in summary.json."
    )
    sheet: ClassVar[Sheet | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = (
        _metric("mean_ap", name="Mean AP", group="All classes", key="Classes of VOC 2007, mean AP"),
        _metric("mean_ap_11_point", name="Mean AP at 11 points", group="All classes"),
        _metric("one_crop", "mean_ap", name="Mean AP of one crop", group="All classes"),
        _metric("one_crop", "mean_ap_11_point", name="Mean AP at 11 points of one crop", group="All classes"),
        *(_metric("classes", name, "ap", name=name, group="Each class, AP") for name in VOC_CLASSES),
        *(
            _metric("classes", name, "ap_11_point", name=name, group="Each class, AP at 11 points")
            for name in VOC_CLASSES
        ),
    )

    devkit: Annotated[Path, "VOCdevkit, with the photos and annotations of VOC2007's trainval and test."]
    scores: Annotated[
        Path | None, "JSON of predictions to score instead of a run: photo's ID to class to score; all test photos."
    ] = None
    classes: Annotated[str, "Classes, separated by commas."] = "all"
    train_from: Annotated[str, "The first layer that learns, such as fc6 or fc8; those below stay as they are."] = "all"
    rescale: Annotated[
        bool, "Before that, give each layer a factor such that all learn as fast; the authors' `_rs` weights had it."
    ] = False
    iterations: Annotated[int, "Steps of SGD."] = 80_000
    batch_size: Annotated[int, "Crops of a step."] = 16
    lr: Annotated[float, "Learning rate of weights; of biases twice that."] = 1e-3
    fc_lr_factor: Annotated[float, "By which rates of fc6, fc7, fc8 are multiplied; Ren & Lee have 10."] = 1.0
    drop_every: Annotated[int, "Steps after which the learning rate drops, again and again."] = 10_000
    drop_factor: Annotated[float, "By which it is multiplied then."] = 0.5
    momentum: Annotated[float, "Of SGD."] = 0.9
    weight_decay: Annotated[float, "Of weights and biases."] = 1e-6
    clip_norm: Annotated[float, "Norm to which longer gradients are shortened."] = 10.0
    dropout: Annotated[float, "Fraction that is dropped behind fc6 and fc7, or in front of fc8."] = 0.5
    size: Annotated[int, "Side of the crops that the network sees, in pixels."] = 227
    crops: Annotated[int, "Random crops of a test photo, whose scores are summed."] = 10
    seed: Annotated[int, "Of crops, order, dropout and of layers that are drawn."] = 0
    progress: Annotated[Path | None, "Folder that keeps what was learnt, against a kill; by default the run's."] = None

    def __post_init__(self) -> None:
        least = {"size": _LEAST_SIZE, "iterations": 1, "batch_size": 1, "crops": 1, "drop_every": 1}
        above = ("lr", "fc_lr_factor", "drop_factor", "clip_norm")
        from_0 = ("momentum", "weight_decay", "seed", "dropout")
        for name, value in protocol_of(self, ()).items():
            if name in least and not value >= least[name]:
                raise _out_of_range(name, value, f">= {least[name]}")
            if (name in above and not 0 < value < math.inf) or (name in from_0 and not 0 <= value < math.inf):
                raise _out_of_range(name, value, "> 0" if name in above else ">= 0")
        for name in ("momentum", "dropout"):
            if getattr(self, name) >= 1:
                raise _out_of_range(name, getattr(self, name), "< 1")
        self._classes  # noqa: B018 - refuses a class that VOC does not have

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any backbone can be fine-tuned."""
        return ""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Fine-tune a network for each subject and test it.

        What was learnt is kept once a minute in the run's folder, or in `progress`, until all is done: the same
        command, after a kill, goes on from there to the same numbers.

        Raises:
            DataError: the devkit as `VocDevkit` says; a photo that cannot be read; or the loss is not finite.
            UsageError: the network does not take images of this size or has no layer `train_from`; or it has batch
                norms that cannot be folded, or layers that cannot be rescaled.
        """
        train, test = (self._split(name) for name in (_TRAIN, _TEST))
        subjects = [subject, *beside, *subject.baselines()]
        # All of them first: what cannot be measured is refused before anything learns.
        networks = {one.name: self._network(one, train) for one in subjects}
        deviations = deviations_of(self, _NO_PROTOCOL)
        progress = progress_of(subject, PROGRESS, self.progress)
        found = {one.name: self._scores_of(networks[one.name], one, train, test, progress) for one in subjects}
        progress.forget()
        conditions = {
            **self._tested(test),
            "training_images": len(train.identities),
            "network": {name: network.words for name, network in networks.items()},
            "images": len(test.identities),
            "views": "random squares of the photo in colour, RGB / 255 minus the mean of ImageNet",
            **protocol_of(self, _NO_PROTOCOL),
            "seed": self.seed,
            "deviations": deviations,
        }
        return Measured(rows=self._rows(found, test), conditions=conditions)

    def scored(self) -> Measured | None:
        """What it finds of `scores`, which know no single crop.

        Raises:
            DataError: the file is damaged, or lacks a score; the devkit as `VocDevkit` says.
        """
        if self.scores is None:
            return None
        test = self._split(_TEST)
        found = Scores(_read_scores(self.scores, test.identities, self._classes))
        conditions = {**self._tested(test), "scores": str(self.scores)}
        return Measured(rows=self._rows({_PREDICTIONS: found}, test), conditions=conditions)

    @property
    def _classes(self) -> tuple[str, ...]:
        return chosen_classes(self.classes, "--classes")

    def _tested(self, test: Labelled) -> dict[str, object]:
        """Conditions that scores from anywhere have."""
        return {
            "devkit": str(self.devkit),
            "images": len(test.identities),
            "classes": list(self._classes),
            "difficult": "photos that show nothing but difficult objects of a class do not count for it",
            "ties": "of photos with the same score those that do not show the class come first",
        }

    def _split(self, name: str) -> Labelled:
        devkit = VocDevkit(self.devkit)
        identities = devkit.images(name)
        labels = np.stack([devkit.labels(name, one) for one in self._classes], axis=1)
        return Labelled(identities, [devkit.image_path(identity) for identity in identities], labels)

    def _network(self, subject: Subject, train: Labelled) -> Classifier:
        backbone = rescaled(subject.backbone, self._first_crops(subject, train)) if self.rescale else subject.backbone
        network = Classifier(backbone, len(self._classes), size=self.size, dropout=self.dropout, seed=self.seed)
        network.freeze_below(self.train_from)
        return network

    def _first_crops(self, subject: Subject, train: Labelled) -> list[Tensor]:
        """Ten batches of 16 training photos, as Kraehenbuehl's code takes."""

        def wanted(batch: int) -> list[Wanted]:
            places = range(16 * batch, 16 * (batch + 1)) if batch < _RESCALING_BATCHES else ()
            return [Wanted(train.paths[place % len(train.paths)], (self.seed, 3, place)) for place in places]

        with CropBatches(wanted, size=self.size, threads=subject.config.train.threads) as batches:
            return [batches.take(number).to(run_device()) for number in range(_RESCALING_BATCHES)]

    def _scores_of(
        self, network: Classifier, subject: Subject, train: Labelled, test: Labelled, progress: Progress
    ) -> Scores:
        threads = subject.config.train.threads
        self._learn(network, train, progress, subject.name, threads)
        return self._test(network.eval(), test, subject.name, threads)

    def _learn(self, network: Classifier, train: Labelled, progress: Progress, name: str, threads: int) -> None:
        count, batch_size = len(train.paths), self.batch_size
        order = np.random.default_rng((self.seed, 0)).permutation(count)
        targets = torch.from_numpy(train.labels[order]).to(run_device())

        def wanted(step: int) -> list[Wanted]:
            places = range(step * batch_size, (step + 1) * batch_size) if step < self.iterations else ()
            return [Wanted(train.paths[order[place % count]], (self.seed, 1, place)) for place in places]

        training = Training(
            steps=self.iterations,
            lr_factor=lambda step: self.drop_factor ** (step // self.drop_every),
            seed=self.seed,
            clip_norm=self.clip_norm,
        )
        optimizer = torch.optim.SGD(
            network.groups(self.lr, self.fc_lr_factor), momentum=self.momentum, weight_decay=self.weight_decay
        )
        network.train()
        with CropBatches(wanted, size=self.size, threads=threads) as batches:

            def loss_of(step: int) -> Tensor:
                places = torch.arange(step * batch_size, (step + 1) * batch_size) % count
                return classification_loss(network(batches.take(step).to(run_device())), targets[places])

            training.run(network, optimizer, loss_of, progress, name, self._key(train))

    def _key(self, train: Labelled) -> str:
        """What a training follows from besides the network that it begins with."""
        settings = protocol_of(self, (*_NO_PROTOCOL, "crops"))
        data = hashlib.sha256(repr(train.identities).encode() + train.labels.tobytes()).hexdigest()
        return f"{self.name} {settings} {self.seed} {data}"

    @torch.no_grad()
    def _test(self, network: Classifier, test: Labelled, name: str, threads: int) -> Scores:
        def wanted(batch: int) -> list[Wanted]:
            places = range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(test.paths)))
            return [Wanted(test.paths[place], (self.seed, 2, place)) for place in places]

        numbers = range(-(-len(test.paths) // self.batch_size))
        with CropBatches(wanted, size=self.size, crops=self.crops, threads=threads) as batches:
            parts = [network(batches.take(number).to(run_device())).double().cpu() for number in numbers]
        scores = torch.cat(parts).view(len(test.paths), self.crops, -1)
        if not scores.isfinite().all():
            hint = "the fine-tuning has diverged: lower the learning rate"
            raise DataError("scores of the network are not finite", where=name, hint=hint)
        return Scores(scores.sum(1).numpy(), scores[:, 0].numpy())

    def _rows(self, found: Mapping[str, Scores], test: Labelled) -> list[Row]:
        """The metrics of the classes at hand, of the subjects that have them."""
        precisions = {name: self._precisions(scores, test) for name, scores in found.items()}
        rows = []
        for metric in self.metrics:
            values = {name: own[metric.path] for name, own in precisions.items() if metric.path in own}
            if values:
                rows.append(Row(metric, values))
        return rows

    def _precisions(self, scores: Scores, test: Labelled) -> dict[tuple[str, ...], float]:
        found = dict[tuple[str, ...], float]()
        for where, of_crops in (((), scores.all_crops), (("one_crop",), scores.one_crop)):
            if of_crops is None:
                continue
            for measure, take in (("ap", average_precision), ("ap_11_point", average_precision_11_points)):
                each = [take(*_counted(of_crops[:, n], test.labels[:, n])) for n in range(len(self._classes))]
                found[*where, f"mean_{measure}"] = float(np.mean(each))
                if not where:
                    found |= {
                        ("classes", name, measure): value for name, value in zip(self._classes, each, strict=True)
                    }
        return found


def classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid cross-entropy, summed over classes and divided by the number of images.

    Args:
        scores: (N, classes) logits.
        labels: (N, classes) 1, -1, or 0 for those that are left out.
    """
    losses = F.binary_cross_entropy_with_logits(scores, (labels == 1).to(scores), reduction="none")
    return (losses * (labels != 0)).sum() / len(scores)


def _counted(scores: NDArray[np.float64], labels: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    counts = labels != 0
    return scores[counts], labels[counts] == 1


def _out_of_range(name: str, seen: object, expected: str) -> UsageError:
    where = f"--{name.replace('_', '-')}"
    return UsageError("the setting is out of range", where=where, seen=seen, expected=expected)


def _read_scores(path: Path, identities: Sequence[str], classes: Sequence[str]) -> NDArray[np.float64]:
    """(N, classes) of a JSON object: ID to class to score.

    Raises:
        DataError: it is none, or a photo or a class has no finite score.
    """
    expected = "an object of photos' IDs, each an object of classes with a number"
    try:
        content = json.loads(read_file(path, "a file of scores"))
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, and of lists in lists in lists
        raise DataError("a file of scores is damaged", where=path, seen=str(error), expected=expected) from error
    found = np.empty((len(identities), len(classes)))
    for row, identity in enumerate(identities):
        of_photo = content.get(identity) if isinstance(content, dict) else None
        for column, name in enumerate(classes):
            score = of_photo.get(name) if isinstance(of_photo, dict) else None
            # A whole number may be larger than any float; what is not a number is not within the range either.
            if not isinstance(score, int | float) or isinstance(score, bool) or not abs(score) <= sys.float_info.max:
                where, seen = f"{path}, photo {identity}, {name}", str(shown(score))[:80]
                raise DataError("a score is missing or is no finite number", where=where, seen=seen, expected=expected)
            found[row, column] = score
    return found
