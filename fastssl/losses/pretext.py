"""Losses of methods that learn from photos alone, as pure functions on tensors.

Everything is computed in float32 (float64 for float64 input), whatever precision the network ran in. Nothing here makes
the host wait for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.losses.dense import at_least_float32


def bins_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted cross-entropy of distributions over bins, a mean over the places that have one.

    Each place weighs what the bin weighs that is likeliest in its target.

    Args:
        logits: (N, Q, h, w).
        target: (N, Q, h, w), fractions that sum to 1 over the bins, or are all 0 where a place does not count.
        weight: (Q,), of the bins; None = 1.

    Source: R. Zhang et al., *Colorful Image Colorization*, ECCV 2016, equations 2 and 3, as a mean over places.
    """
    logits, target = at_least_float32(logits), at_least_float32(target)
    loss = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    if weight is not None:
        loss = loss * weight.to(loss.dtype)[target.argmax(dim=1)]
    return loss.sum() / target.sum().clamp(min=1)


def rebalancing_weights(prior: Tensor, uniform: float) -> Tensor:
    """What a bin weighs, so that rare colours are learnt too: 1 / ((1 - u) p + u / Q), with mean 1 under the prior.

    Args:
        prior: (Q,), p, how often each bin is; it sums to 1.
        uniform: u, the share of a uniform distribution.

    Source: as `bins_loss`, equation 4.
    """
    weight = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weight / (prior * weight).sum()


def counting_loss(whole: Tensor, parts: Tensor, other: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Counts of the parts of an image sum to those of the whole, and differ from those of another image.

    Args:
        whole: (N, C), what is counted in an image made smaller.
        parts: (N, K, C), in each of its parts.
        other: (N, C), in another image made smaller.
        margin: squared distance that sums and the other image's counts are to have.

    Returns:
        |c(whole) - sum c(part)|^2 and max(0, margin - |c(other) - sum c(part)|^2), means over the images. Where nothing
        is ever counted they are 0 and `margin`.

    Source: Noroozi, Pirsiavash & Favaro, *Representation Learning by Learning to Count*, ICCV 2017, equation 4.
    """
    whole, total, other = at_least_float32(whole), at_least_float32(parts).sum(dim=1), at_least_float32(other)
    equal = (whole - total).square().sum(dim=1)
    different = F.relu(margin - (other - total).square().sum(dim=1))
    return equal.mean(), different.mean()


def masked_loss(prediction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the pixels and channels that a mask hides; the others do not count.

    Args:
        prediction: (N, C, S, S).
        image: (N, C, S, S).
        mask: (N, 1, S, S) bool, true where the image was hidden.

    Source: Pathak et al., *Context Encoders*, CVPR 2016, equation 1, as a mean.
    """
    error = (at_least_float32(prediction) - at_least_float32(image)).square()
    hidden = torch.where(mask, error, 0.0)
    return hidden.sum() / (mask.sum() * image.shape[1]).clamp(min=1)
