"""One vector per image: a layer's features, averaged over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.evaluate.networks import image_batches
from fastssl.loader import Mixture
from fastssl.models import Networks

DEFAULT_LAYER = "conv5"


def compared_layer(config: Config) -> str:
    """The adapted layer, or conv5 where no layer was adapted."""
    layer = config.model.adapted_layer
    return DEFAULT_LAYER if layer == "none" else layer


@torch.no_grad()
def pooled_features(networks: Networks, config: Config, layer: str, shards: Mixture) -> Tensor:
    """Features of every image of a dataset at a layer: (N, C) float32 on the CPU.

    Raises:
        DataError: some are not finite, so that nothing can be compared by them.
    """
    batches = image_batches(config, shards)
    features = [networks.backbone(batch.image, until=layer)[layer].float().mean(dim=(2, 3)) for batch in batches]
    pooled = torch.cat(features).cpu()
    if not pooled.isfinite().all():
        raise DataError(
            "features of the network are not finite",
            where=layer,
            seen=f"{int((~pooled.isfinite()).any(dim=1).sum())} of {len(pooled)} images",
            do="the training has diverged; use an earlier checkpoint, or train with a lower optim.lr",
        )
    return pooled
