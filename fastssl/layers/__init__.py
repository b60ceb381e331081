"""Parts of networks beside the backbone, and what initialises them."""

from fastssl.layers.discriminator import Discriminator
from fastssl.layers.feature_pool import FeaturePool
from fastssl.layers.folding import fold_batch_norms
from fastssl.layers.heads import Heads, build_heads
from fastssl.layers.initialise import xavier_initialise

__all__ = ["Discriminator", "FeaturePool", "Heads", "build_heads", "fold_batch_norms", "xavier_initialise"]
