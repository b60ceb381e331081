"""What features are worth without a task of their own: are neighbours alike, and how many directions are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.backbones import Backbone
from fastssl.batch import Batch
from fastssl.metrics.metric import Metric

PROBE_METRICS = (
    Metric(path=("knn",), name="Accuracy of 20 nearest neighbours", better="higher", unit="%", digits=1, factor=100),
    Metric(path=("rankme",), name="RankMe, effective rank of the features", better="higher", digits=1),
)
"""What can be said of any features, in the order in which it is shown."""

TEMPERATURE = 0.07
"""Of the votes of neighbours."""
_NEIGHBOURS = 20
_QUERIES = 1024
_EPSILON = 1e-7
_RANKED = 25_600


@torch.no_grad()
def pooled(backbone: Backbone, layer: str, batches: Iterable[Batch]) -> Tensor:
    """Features of every image at a layer, averaged over the image: (N, C) float32 on the batches' device."""
    return torch.cat([backbone(batch.image, until=layer)[layer].float().mean(dim=(2, 3)) for batch in batches])


def knn_accuracy(features: Tensor, classes: Tensor, between: Callable[[], None] = lambda: None) -> float | None:
    """Accuracy of classes that an image's 20 nearest neighbours among all others vote for, by cosine.

    Each votes with a weight of exp(cosine / 0.07), as in Wu et al., *Instance Discrimination*, CVPR 2018. Images
    without a class, -1, are left out. Where there are fewer than 20 others, all of them vote.

    Args:
        features: (N, C) float32.
        classes: (N,) int64.
        between: is called now and then; memory does not grow with the square of N.

    Returns:
        A fraction; None where fewer than two images have a class.
    """
    labelled = classes >= 0
    features, (names, classes) = features[labelled], classes[labelled].unique(return_inverse=True)
    if len(classes) < 2:
        return None
    directions = functional.normalize(features, dim=1)
    right = 0
    for first in range(0, len(classes), _QUERIES):
        between()
        similarity = directions[first : first + _QUERIES] @ directions.T
        queries = torch.arange(len(similarity), device=features.device)
        similarity[queries, first + queries] = -torch.inf
        near, found = similarity.topk(min(_NEIGHBOURS, len(classes) - 1), dim=1)
        votes = class_votes(near, classes[found], len(names))
        right += int((votes.argmax(dim=1) == classes[first : first + _QUERIES]).sum())
    return right / len(classes)


def class_votes(near: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Votes of neighbours for their classes, each with a weight of exp(cosine / 0.07): (M, K).

    Args:
        near: (M, k), cosines of the neighbours, the largest first.
        classes: (M, k) int64, of the neighbours.
        num_classes: K.
    """
    # Of the nearest one the weight is 1, which changes no vote and overflows nothing.
    weights = ((near - near[:, :1]) / TEMPERATURE).exp()
    return near.new_zeros(len(near), num_classes).scatter_add_(1, classes, weights)


def rank_me(features: Tensor) -> float | None:
    """The effective rank of features: exp of the entropy of their singular values as fractions of their sum.

    Each fraction has 1e-7 added, as in Garrido et al., *RankMe*, ICML 2023. From 1, where all images have one
    direction, to min(N, C). Of more than 25,600 images, as many as there, evenly spread ones are taken.

    Args:
        features: (N, C) float32.

    Returns:
        None where all features are zero.
    """
    if len(features) > _RANKED:
        features = features[torch.linspace(0, len(features) - 1, _RANKED, device=features.device).round().long()]
    values = torch.linalg.svdvals(features.double())
    if not values.sum() > 0:
        return None
    fractions = values / values.sum() + _EPSILON
    return float(torch.exp(-(fractions * fractions.log()).sum()))
