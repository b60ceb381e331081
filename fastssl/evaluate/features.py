"""One vector per image: a layer's features, averaged over the image."""

from __future__ import annotations

from torch import Tensor

from fastssl.errors import DataError
from fastssl.evaluate.subject import Subject, every_sample
from fastssl.loader import Domain
from fastssl.metrics import pooled


def pooled_features(subject: Subject, images: Domain) -> Tensor:
    """Features of every image of a domain at the subject's layer: (N, C) float32 on the CPU.

    Raises:
        DataError: some are not finite, so that nothing can be compared by them.
    """
    with every_sample(images) as batches:
        features = pooled(subject.backbone, subject.layer, batches).cpu()
    if not features.isfinite().all():
        raise DataError(
            "features of the network are not finite",
            where=subject.layer,
            seen=f"{int((~features.isfinite()).any(dim=1).sum())} of {len(features)} images",
            hint="the training has diverged; use an earlier checkpoint, or train with a lower optim.lr",
        )
    return features
