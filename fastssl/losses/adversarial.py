"""Losses of an adversary that tells synthetic features from real ones.

h   side of the discriminator's map of decisions
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastssl.losses.dense import at_least_float32


def adversarial_loss(logits_synthetic: Tensor, logits_real: Tensor | None = None) -> Tensor:
    """What B pays for features that D recognises: the mean of -log(1 - D(z_x)), and of -log D(z_y) if photos count too.

    Args:
        logits_synthetic: (N, 1, h, h), D's logits of synthetic features; sigmoid of them is D(z_x).
        logits_real: (M, 1, h, h), D's logits of real features where these are to look synthetic; M need not be N.

    Source: docs/reproduction.md, section 2.1, with D(z) = 1 for synthetic. The second term: section 7.4.
    """
    loss = F.softplus(at_least_float32(logits_synthetic)).mean()
    return loss if logits_real is None else loss + F.softplus(-at_least_float32(logits_real)).mean()


def discriminator_loss(logits_synthetic: Tensor, logits_real: Tensor) -> Tensor:
    """What D pays for its mistakes: the mean of -log D(z_x) plus the mean of -log(1 - D(z_y)).

    Args:
        logits_synthetic: (N, 1, h, h), D's logits of synthetic features.
        logits_real: (M, 1, h, h), D's logits of real features; M need not be N.

    Source: docs/reproduction.md, section 2.1, with D(z) = 1 for synthetic.
    """
    synthetic, real = at_least_float32(logits_synthetic), at_least_float32(logits_real)
    return F.softplus(-synthetic).mean() + F.softplus(real).mean()
