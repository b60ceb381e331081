"""Losses: pure functions on tensors, each with its source."""

from fastssl.losses.adversarial import adversarial_loss, discriminator_loss
from fastssl.losses.dense import depth_loss, edge_loss, normal_loss

__all__ = ["adversarial_loss", "depth_loss", "discriminator_loss", "edge_loss", "normal_loss"]
