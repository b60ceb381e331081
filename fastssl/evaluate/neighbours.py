"""Retrieval: whether the nearest neighbours of a crop come from the same photograph."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastssl.errors import DataError
from fastssl.evaluate.features import pooled_features
from fastssl.evaluate.results import keep_results
from fastssl.evaluate.subject import Subject, run_subject
from fastssl.loader import open_domain
from fastssl.pictures import Picture, framed, grid
from fastssl.shards import ShardSet, decode_sample

log = logging.getLogger(__name__)

_DEPTHS = (1, 5)
"""Numbers of neighbours at which the precision is measured."""
_SHOWN_QUERIES, _SHOWN_NEIGHBOURS, _SHOWN_PX = 8, 4, 96


def evaluate_neighbours(run: Path, real: str | PathLike[str], not_adapted: Path | None = None) -> dict[str, object]:
    """Leave-one-out retrieval by the cosine of the compared layer's pooled features.

    The layer, distance and database are our choice: no source names the authors' (docs/reproduction.md, section 1.5). A
    precision at k needs k neighbours: with fewer photos than k + 1 it is None, and a warning says so.

    Writes `neighbours.{precision_at_1,precision_at_5}.{trained,untrained[,not_adapted]}` into the run's summary and
    `samples/neighbours.png`.

    Args:
        run: the run folder.
        real: packed photos with classes, a folder or an address; crops of one photograph share a class.
        not_adapted: a run trained without adaptation, to compare with.

    Raises:
        DataError: the photos have no classes, are rendered, or there is only one; or the training data are not those
            of the run.
    """
    trained = run_subject(run)
    subjects: list[Subject] = [trained]
    if not_adapted is not None:
        subjects.append(run_subject(not_adapted, "not_adapted"))
    shards = open_photos(real)
    classes = _classes(shards)
    subjects.append(trained.untrained())
    order = {subject.name: neighbours(pooled_features(subject, subject.domain("real", real))) for subject in subjects}
    precision = {
        f"precision_at_{k}": {name: precision_at(k, found, classes) for name, found in order.items()} for k in _DEPTHS
    }
    values: dict[str, object] = {"layer": trained.layer, **precision}
    keep_results(run, {"neighbours": values}, {"neighbours.png": _draw(shards, order, classes)})
    return values


def open_photos(real: str | PathLike[str]) -> ShardSet:
    """One packed dataset of photos.

    Raises:
        DataError: it is missing, damaged, or of rendered images.
    """
    (shards,) = open_domain(real, "real").datasets
    return shards


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
    if order.shape[1] < k:
        return None
    return float((classes[order[:, :k]] == classes[:, None]).double().mean())


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
