"""Retrieval: whether the nearest neighbours of a crop come from the same photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.evaluate.features import compared_layer, pooled_features
from fastssl.evaluate.networks import trained_networks, untrained_networks
from fastssl.loader import Mixture
from fastssl.models import Networks
from fastssl.pictures import Picture, framed, grid, write_picture
from fastssl.shards import ShardSet, decode_sample
from fastssl.telemetry import merge_summary

_SHOWN_QUERIES, _SHOWN_NEIGHBOURS, _SHOWN_PX = 8, 4, 96


def evaluate_neighbours(run: Path, real: Path, not_adapted: Path | None = None) -> dict[str, object]:
    """Leave-one-out retrieval by the cosine of the compared layer's pooled features.

    The layer, distance and database are our choice: the paper shows pictures and names none of them.

    Writes `neighbours.{precision_at_1,precision_at_5}.{trained,untrained[,not_adapted]}` into the run's summary and
    `samples/neighbours.png`.

    Args:
        run: the run folder.
        real: packed photos with classes; crops of one photograph share a class.
        not_adapted: a run trained without adaptation, to compare with.

    Raises:
        DataError: the photos have no classes.
    """
    networks, config = trained_networks(run)
    shards = ShardSet(real)
    candidates: dict[str, tuple[Networks, Config]] = {"trained": (networks, config)}
    if not_adapted is not None:
        candidates["not_adapted"] = trained_networks(not_adapted)
    candidates["untrained"] = (untrained_networks(config), config)
    labels = torch.tensor([shards.label(i) for i in range(len(shards))])
    if bool((labels < 0).any()):
        raise DataError("the photos have no classes", where=real, do="pack them from a folder per photograph")
    layer = compared_layer(config)
    order = {
        name: neighbours(pooled_features(parts, settings, layer, Mixture([shards])))
        for name, (parts, settings) in candidates.items()
    }
    precision = {
        f"precision_at_{k}": {name: precision_at(k, found, labels) for name, found in order.items()} for k in (1, 5)
    }
    values: dict[str, object] = {"layer": layer, **precision}
    merge_summary(run, {"neighbours": values})
    write_picture(_draw(shards, order, labels), run / "samples" / "neighbours.png")
    return values


def neighbours(features: Tensor) -> Tensor:
    """All other images, nearest first: (N, C) features to (N, N - 1) numbers."""
    directions = functional.normalize(features.double(), dim=1)
    similarity = directions @ directions.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]


def precision_at(k: int, order: Tensor, labels: Tensor) -> float:
    """Mean share of the first k neighbours that have their query's class."""
    return float((labels[order[:, :k]] == labels[:, None]).double().mean())


def _draw(shards: ShardSet, order: dict[str, Tensor], labels: Tensor) -> Image.Image:
    """Queries, evenly spread over the dataset, with the first neighbours by each network; right ones are framed."""
    queries = torch.linspace(0, len(shards) - 1, _SHOWN_QUERIES).long().tolist()
    rows = []
    for query in queries:
        row = [_thumbnail(shards, query)]
        for found in order.values():
            for other in found[query, :_SHOWN_NEIGHBOURS].tolist():
                picture = _thumbnail(shards, other)
                row.append(framed(picture) if labels[other] == labels[query] else picture)
        rows.append(row)
    headings = ["query"]
    for name in order:
        headings += [name.replace("_", " "), *[""] * (_SHOWN_NEIGHBOURS - 1)]
    return grid(rows, headings)


def _thumbnail(shards: ShardSet, sample: int) -> Picture:
    image = Image.fromarray(decode_sample(shards, sample).image)
    return np.asarray(image.resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.BOX))
