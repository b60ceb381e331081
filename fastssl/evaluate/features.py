"""One vector per image: a layer's features, averaged over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.config import Config
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
    """Features of every image of a dataset at a layer: (N, C) float32 on the CPU."""
    batches = image_batches(config, shards)
    features = [networks.backbone(batch.image, until=layer)[layer].float().mean(dim=(2, 3)) for batch in batches]
    return torch.cat(features).cpu()
