"""Parts of networks beside the backbone, and what initialises them."""

from fastssl.layers.discriminator import Discriminator
from fastssl.layers.feature_pool import FeaturePool
from fastssl.layers.heads import Heads
from fastssl.layers.initialise import xavier_initialise

__all__ = ["Discriminator", "FeaturePool", "Heads", "xavier_initialise"]
