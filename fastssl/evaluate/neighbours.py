"""Retrieval: whether the nearest neighbours of a crop come from the same photograph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastssl.addresses import masked
from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.evaluate.evaluation import Dataset, Measured, Metric, Row, Sheet
from fastssl.evaluate.features import pooled_features, words_of_bootstrap
from fastssl.evaluate.subject import Subject, statistics_of
from fastssl.metrics import bootstrap_interval
from fastssl.pictures import Picture, framed, grid
from fastssl.shards import ShardSet, decode_sample

log = logging.getLogger(__name__)

_DEPTHS = (1, 5)
"""Numbers of neighbours at which the precision is measured."""
_SHOWN_QUERIES, _SHOWN_NEIGHBOURS, _SHOWN_PX = 8, 4, 96


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Whether the nearest neighbours of a crop come from the same photograph.

    Leave-one-out retrieval by the cosine of the compared layer's pooled features. Layer, distance and database are our
    choice: no source names the authors' (docs/reproduction.md, section 1.5).
    """

    name: ClassVar[str] = "neighbours"
    title: ClassVar[str] = "Nearest neighbours"
    note: ClassVar[str] = (
        "Every held-out crop looks for its nearest neighbours among all others. A neighbour is right if it comes from "
        "the same photograph. Precision at k is the fraction of right ones among the first k. Trained reestimated has "
        "batch norms with the statistics of these crops; trained has those of the training."
    )
    sheet: ClassVar[Sheet | None] = Sheet(
        "neighbours.png",
        "Query crops in rows, each with its nearest neighbours by every network; right ones have a green frame",
        "Queries and their nearest neighbours by the features of every network, nearest first. A green frame marks a "
        "crop of the same photograph.",
    )
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(
            path=(f"precision_at_{k}",), name=f"Precision at {k}", key=f"Neighbours, precision at {k}", better="higher"
        )
        for k in _DEPTHS
    )

    real: Annotated[Dataset, "Packed photos with classes, a folder or an address; crops of one photograph share one."]

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any features have neighbours."""
        return ""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Measure the precision, and draw some queries.

        A precision at k needs k neighbours: with fewer photos than k + 1 it is None, and a warning says so.

        Raises:
            DataError: the photos have no classes, are rendered, or there is only one; or the training data are not
                those of the run.
        """
        images = subject.domain("real", self.real)
        (photos,) = images.samples.datasets
        classes = _classes(photos)
        again = subject.reestimated(images, until=subject.layer)
        subjects = [subject, *([again] if again else []), *beside, *subject.baselines()]
        order = {one.name: neighbours(pooled_features(one, one.sees(images))) for one in subjects}
        rows = [_row(metric, k, order, classes) for metric, k in zip(self.metrics, _DEPTHS, strict=True)]
        conditions = {
            "layer": subject.layer,
            "real": masked(str(self.real)),
            "images": len(photos),
            "statistics": statistics_of(subject, subjects),
            "intervals": words_of_bootstrap(classes),
        }
        picture = _draw(photos, order, classes)
        return Measured(rows=rows, conditions=conditions, pictures={"neighbours.png": picture})


def _classes(shards: ShardSet) -> Tensor:
    """The class of each photo; says what classes and numbers make the precision mean little or nothing."""
    classes = torch.tensor([shards.class_index(i) for i in range(len(shards))])
    if bool((classes < 0).any()):
        raise DataError("the photos have no classes", where=shards.path, hint="pack them from a folder per photograph")
    if len(classes) < 2:
        raise DataError("a single photo has no neighbours", where=shards.path, seen="1 photo", expected="2 or more")
    for k in _DEPTHS:
        if len(classes) <= k:
            log.warning("precision at %d needs %d photos, and there are %d: it has no value", k, k + 1, len(classes))
    _, sizes = classes.unique(return_counts=True)
    alone = int((sizes == 1).sum())
    if len(sizes) == 1:
        log.warning("all photos have the same class, so every neighbour is right")
    elif alone:
        log.warning("%d of %d photos have a class of their own, so no neighbour can be right", alone, len(classes))
    return classes


def neighbours(features: Tensor) -> Tensor:
    """All other images, nearest first: (N, C) features to (N, N - 1) numbers."""
    directions = functional.normalize(features.double(), dim=1)
    similarity = directions @ directions.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]


def precision_at(k: int, order: Tensor, classes: Tensor) -> float | None:
    """Mean fraction of the first k neighbours that have their query's class; None where there are fewer than k."""
    return float(_right_at(k, order, classes).mean()) if order.shape[1] >= k else None


def _right_at(k: int, order: Tensor, classes: Tensor) -> Tensor:
    """The fraction of the first k neighbours of each query that have its class: (N,) float64."""
    return (classes[order[:, :k]] == classes[:, None]).double().mean(dim=1)


def _row(metric: Metric, k: int, order: Mapping[str, Tensor], classes: Tensor) -> Row:
    """The precision at k of all subjects; its intervals draw photographs, each with all of its crops as queries."""
    values = {name: precision_at(k, found, classes) for name, found in order.items()}
    intervals = {}
    for name in (name for name, value in values.items() if value is not None):
        right = _right_at(k, order[name], classes)
        if interval := bootstrap_interval(right, torch.ones(len(classes)), classes):
            intervals[name] = interval
    return Row(metric, values, intervals)


def _draw(shards: ShardSet, order: dict[str, Tensor], classes: Tensor) -> Image.Image:
    """Queries, evenly spread over the dataset, with the first neighbours by each network; right ones are framed."""
    queries = torch.linspace(0, len(shards) - 1, min(_SHOWN_QUERIES, len(shards))).round().long().tolist()
    shown = min(_SHOWN_NEIGHBOURS, len(shards) - 1)
    rows = []
    for query in queries:
        row = [_thumbnail(shards, query)]
        for found in order.values():
            for other in found[query, :shown].tolist():
                picture = _thumbnail(shards, other)
                row.append(framed(picture) if classes[other] == classes[query] else picture)
        rows.append(row)
    headings = ["query"]
    for name in order:
        headings += [name.replace("_", " "), *[""] * (shown - 1)]
    return grid(rows, headings)


def _thumbnail(shards: ShardSet, sample: int) -> Picture:
    image = Image.fromarray(decode_sample(shards, sample).image)
    return np.asarray(image.resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.BOX))
