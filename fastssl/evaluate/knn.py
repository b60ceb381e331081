"""Accuracy of nearest neighbours: classes of test images, told by the training images that look most alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.addresses import masked
from fastssl.config import Config
from fastssl.evaluate.evaluation import Dataset, Measured, Metric, Row, Sheet
from fastssl.evaluate.features import pooled_features
from fastssl.evaluate.labelled import INTERVALS, TOPS, Labelled, open_labelled, right_rank, top_row
from fastssl.evaluate.subject import Subject, statistics_of
from fastssl.metrics import TEMPERATURE, class_votes

log = logging.getLogger(__name__)

_NEIGHBOURS = (1, 20, 200)
_QUERIES, _BANK = 512, 8192
"""Test and training images that are compared at once."""
_SCORES = 1 << 22
"""Votes, of images for classes, that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class NearestClasses:
    """Whether the nearest training images vote for the class of a test image.

    The cosine of a layer's pooled features, and votes with a weight of exp(cosine / 0.07): Wu et al., Instance
    Discrimination, CVPR 2018. It is exact, and nothing is trained.
    """

    name: ClassVar[str] = "knn"
    title: ClassVar[str] = "Classes by nearest neighbours"
    note: ClassVar[str] = (
        "The training images with the nearest features vote for the class of a test image, a near one more than one "
        "that is farther away. Top-1 is the fraction of test images for whose class most is voted, top-5 that of those "
        "whose class is among the first five. Trained reestimated has batch norms with the statistics of the training "
        "images that vote here."
    )
    sheet: ClassVar[Sheet | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(
            path=(f"k_{k}", f"top_{top}"),
            name=f"Top-{top}",
            group=f"{k} neighbours" if k > 1 else "The nearest neighbour",
            key="Classes by 20 neighbours, top-1" if (k, top) == (20, 1) else "",
            unit="%",
            better="higher",
            digits=1,
            factor=100,
        )
        for k in _NEIGHBOURS
        for top in (TOPS if k > 1 else TOPS[:1])
    )

    train: Annotated[Dataset, "Packed photos with classes that vote: a folder or an address."]
    test: Annotated[Dataset, "Packed photos with the same classes that are tested: a folder or an address."]
    layer: Annotated[str | None, "Layer whose features are compared; the method's own if not given."] = None

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any features have neighbours."""
        return ""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Classify the test images.

        Where there are fewer training images than neighbours, all of them vote.

        Raises:
            DataError: as `open_labelled`; features are not finite; or the training data are not those of the run.
            ConfigError: a subject has no such layer.
        """
        labelled = open_labelled(subject, self.train, self.test)
        if (most := len(labelled.train_classes)) < max(_NEIGHBOURS):
            log.warning("there are only %d training images: all vote where %d neighbours would", most, max(_NEIGHBOURS))
        for one in (subject, *beside):
            one.backbone.check_layer(self.layer or one.layer)
        again = subject.reestimated(labelled.train, until=self.layer or subject.layer)
        subjects = [subject, *([again] if again else []), *beside, *subject.baselines()]
        subjects = [replace(one, layer=self.layer or one.layer) for one in subjects]
        ranks = {one.name: _ranks(one, labelled) for one in subjects}
        rows = [self._row(metric, ranks) for metric in self.metrics]
        conditions = {
            "layer": subject.layer if self.layer is None else self.layer,
            "train": masked(str(self.train)),
            "test": masked(str(self.test)),
            "images": len(labelled.test_classes),
            "training_images": len(labelled.train_classes),
            "classes": labelled.num_classes,
            "temperature": TEMPERATURE,
            "statistics": statistics_of(subject, subjects),
            "intervals": INTERVALS,
        }
        return Measured(rows=rows, conditions=conditions)

    @staticmethod
    def _row(metric: Metric, ranks: dict[str, dict[int, Tensor]]) -> Row:
        k, top = (int(part.rpartition("_")[2]) for part in metric.path)
        return top_row(metric, top, {name: found[k] for name, found in ranks.items()})


def _ranks(subject: Subject, labelled: Labelled) -> dict[int, Tensor]:
    """`class_ranks` of the test images by their features."""
    bank = pooled_features(subject, subject.sees(labelled.train))
    queries = pooled_features(subject, subject.sees(labelled.test))
    return class_ranks(bank, labelled.train_classes, queries, labelled.test_classes, labelled.num_classes)


def class_ranks(
    bank: Tensor, bank_classes: Tensor, queries: Tensor, classes: Tensor, num_classes: int
) -> dict[int, Tensor]:
    """How many classes get more votes than the right one, by number of neighbours, (M,) int64.

    A class that nobody votes for is never right: it comes after all classes.

    Args:
        bank: (N, C), features of those who vote.
        bank_classes: (N,) int64.
        queries: (M, C), features of images that are classified.
        classes: (M,) int64, their right classes.
        num_classes: of both.
    """
    bank, queries = functional.normalize(bank, dim=1), functional.normalize(queries, dim=1)
    at_once = max(1, min(_QUERIES, _SCORES // num_classes))
    ranks = dict[int, list[Tensor]]()
    for some, right in zip(queries.split(at_once), classes.split(at_once), strict=True):
        near, found = nearest(bank, some, max(_NEIGHBOURS))
        for k in _NEIGHBOURS:
            votes = class_votes(near[:, :k], bank_classes[found[:, :k]], num_classes)
            rank = right_rank(votes, right)
            nobody = votes.gather(1, right[:, None])[:, 0] == 0
            ranks.setdefault(k, []).append(rank.masked_fill(nobody, num_classes))
    return {k: torch.cat(parts) for k, parts in ranks.items()}


def nearest(bank: Tensor, queries: Tensor, k: int, at_once: int = _BANK) -> tuple[Tensor, Tensor]:
    """The k directions of a bank that have the largest cosine with each query; of equal ones those that come first.

    Args:
        bank: (N, C), of length 1.
        queries: (M, C), of length 1.
        k: their number; all where there are fewer.
        at_once: of the bank that are compared together, which changes time and memory, and nothing else but rounding.

    Returns:
        Cosines (M, k), largest first, and numbers in the bank.
    """
    best = queries.new_empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(bank), at_once):
        similarity = queries @ bank[first : first + at_once].T
        here = torch.arange(first, first + similarity.shape[1], device=queries.device).expand(len(queries), -1)
        # Those of before stand first, and the order of equal ones is kept.
        best, order = torch.cat([best, similarity], dim=1).sort(dim=1, descending=True, stable=True)
        best, order = best[:, :k].clone(), order[:, :k]
        numbers = torch.cat([numbers, here], dim=1).gather(1, order)
    return best, numbers
