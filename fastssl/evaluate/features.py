"""One vector per image: a layer's features, averaged over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.errors import DataError
from fastssl.evaluate.subject import Subject, every_sample
from fastssl.loader import Domain


@torch.no_grad()
def pooled_features(subject: Subject, images: Domain) -> Tensor:
    """Features of every image of a domain at the subject's layer: (N, C) float32 on the CPU.

    Raises:
        DataError: some are not finite, so that nothing can be compared by them.
    """
    layer, backbone = subject.layer, subject.backbone
    with every_sample(images) as batches:
        features = [backbone(batch.image, until=layer)[layer].float().mean(dim=(2, 3)) for batch in batches]
    pooled = torch.cat(features).cpu()
    if not pooled.isfinite().all():
        raise DataError(
            "features of the network are not finite",
            where=layer,
            seen=f"{int((~pooled.isfinite()).any(dim=1).sum())} of {len(pooled)} images",
            hint="the training has diverged; use an earlier checkpoint, or train with a lower optim.lr",
        )
    return pooled
