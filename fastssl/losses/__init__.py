"""Losses: pure functions on tensors, each with its source."""

from fastssl.losses.adversarial import adversarial_loss, discriminator_loss
from fastssl.losses.dense import depth_loss, edge_loss, normal_loss
from fastssl.losses.pretext import bins_loss, counting_loss, masked_loss, rebalancing_weights

__all__ = [
    "adversarial_loss",
    "bins_loss",
    "counting_loss",
    "depth_loss",
    "discriminator_loss",
    "edge_loss",
    "masked_loss",
    "normal_loss",
    "rebalancing_weights",
]
