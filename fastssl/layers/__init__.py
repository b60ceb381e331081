"""Parts of networks beside the backbone, and what initialises them."""

from fastssl.layers.data_dependent import Constraint, initialise_by_data, rescaled
from fastssl.layers.discriminator import Discriminator, DiscriminatorNorm
from fastssl.layers.feature_pool import FeaturePool
from fastssl.layers.folding import fold_batch_norms
from fastssl.layers.fully_connected import drawn_linear, linear_of
from fastssl.layers.heads import Heads, build_heads
from fastssl.layers.initialise import xavier_initialise
from fastssl.layers.joint_pass import JointPass

__all__ = [
    "Constraint",
    "Discriminator",
    "DiscriminatorNorm",
    "FeaturePool",
    "Heads",
    "JointPass",
    "build_heads",
    "drawn_linear",
    "fold_batch_norms",
    "initialise_by_data",
    "linear_of",
    "rescaled",
    "xavier_initialise",
]
