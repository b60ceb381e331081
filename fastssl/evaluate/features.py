"""One vector per image: a layer's features, averaged over the image; and what is said of features and photographs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastssl.errors import DataError
from fastssl.evaluate.subject import Subject, every_sample
from fastssl.loader import Domain
from fastssl.metrics import DRAWS, pooled
from fastssl.shards import ShardSet


def pooled_features(subject: Subject, images: Domain) -> Tensor:
    """Features of every image of a domain at the subject's layer: (N, C) float32 on the CPU.

    Raises:
        DataError: some are not finite, so that nothing can be compared by them.
    """
    with every_sample(images) as batches:
        features = pooled(subject.backbone, subject.layer, batches).cpu()
    check_finite({subject.layer: features})
    return features


def check_finite(features: Mapping[str, Tensor]) -> None:
    """Refuse features, by layer, (N, ...), that are not finite, so that nothing can be compared by them.

    Raises:
        DataError: see above.
    """
    for layer, found in features.items():
        finite = found.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise DataError(
                "features of the network are not finite",
                where=layer,
                seen=f"{int((~finite).sum())} of {len(found)} images",
                hint="the training has diverged; use an earlier checkpoint, or train with a lower optim.lr",
            )


def photographs(photos: ShardSet) -> Tensor:
    """The photograph that each photo is of, (N,) int64: its class, or where not all have one, the photo itself."""
    classes = torch.tensor([photos.class_index(number) for number in range(len(photos))])
    return classes if bool((classes >= 0).all()) else torch.arange(len(photos))


def words_of_bootstrap(groups: Tensor) -> str:
    """Words for intervals that were made by drawing photographs, (N,), again and again."""
    count = len(groups.unique())
    if count < 2:
        return "none, as all photos are of one photograph, or class"
    return f"95 %, bootstrap of {DRAWS} draws over {count} photographs (classes, where all photos have one)"
