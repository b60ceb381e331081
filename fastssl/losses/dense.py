"""Losses of predictions per pixel, as pure functions on tensors.

    N   images of the batch
    S   side of the input and of the predictions

Everything is computed in float32 (float64 for float64 input), whatever precision the network ran in. A batch or an
image without a valid pixel gives 0 and no gradient. Nothing here makes the host wait for the device.

Two forms of each term: the published one, as far as it is known, and what the authors' code computes (`released`).
Sources: docs/reproduction.md, sections 2, 3.6 and 4.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_UNKNOWN_DEPTH = 1e-8  # metres: what the authors' code adds to every depth before the logarithm
_UNKNOWN_NORMAL = -(3.0**-0.5)  # every component: what their PNG decoding makes of a black pixel
# The authors' loader draws another image when one has fewer contour pixels than this; so many has a window of theirs.
_LEAST_CONTOURS, _THEIR_PIXELS = 350, 227**2


def depth_loss(
    pred_log_depth: Tensor, depth: Tensor, valid: Tensor | None, form: Literal["eigen", "released"]
) -> Tensor:
    """Error of the logarithm of depth, part of which a common factor of all depths does not touch.

    With d the difference of the logarithms at the pixels that count:

    - `eigen`: (mean d^2 - (mean d)^2 / 2) / 2 of each image, averaged over the images with a valid pixel. Source:
      Eigen et al., NeurIPS 2014, equation 4, with lambda = 1/2.
    - `released`: (mean d^2 + (mean d)^2 / 2) / 2 with both means over the whole batch. Source: docs/reproduction.md,
      section 4.3.

    Args:
        pred_log_depth: (N, 1, S, S), logarithm of metres.
        depth: (N, 1, S, S) metres, 0 = not known.
        valid: (N, 1, S, S) bool; None counts every pixel and has log(1e-8) as target where depth is not known
            (docs/reproduction.md, section 4.2).
        form: see above.
    """
    prediction, depth = at_least_float32(pred_log_depth), at_least_float32(depth)
    if valid is None:
        valid = torch.ones_like(depth, dtype=torch.bool)
        target = torch.log(depth + _UNKNOWN_DEPTH)
    else:
        target = torch.log(depth)
    error = torch.where(valid, prediction - target, 0.0)
    if form == "released":
        count = valid.sum().clamp(min=1)
        return 0.5 * (error.square().sum() / count + 0.5 * (error.sum() / count).square())
    pixels = valid.sum((1, 2, 3))
    count = pixels.clamp(min=1)
    squares, mean = error.square().sum((1, 2, 3)) / count, error.sum((1, 2, 3)) / count
    per_image = 0.5 * (squares - 0.5 * mean.square())
    return per_image.sum() / (pixels > 0).sum().clamp(min=1)


def normal_loss(pred_normal: Tensor, normal: Tensor, valid: Tensor | None) -> Tensor:
    """One minus the cosine of the angle between the normals, averaged over the batch's pixels that count.

    It has the gradient of a negative dot product (docs/reproduction.md, section 2.4), and is 0 when all is right.

    Args:
        pred_normal: (N, 3, S, S), unit vectors.
        normal: (N, 3, S, S), unit vectors, zero vector = not known.
        valid: (N, 1, S, S) bool; None counts every pixel and has (-1, -1, -1) / sqrt(3) as target where the normal
            is not known (docs/reproduction.md, section 4.4).
    """
    prediction, target = at_least_float32(pred_normal), at_least_float32(normal)
    if valid is None:
        target = torch.where((target == 0).all(1, keepdim=True), _UNKNOWN_NORMAL, target)
        return (1 - (prediction * target).sum(1)).mean()
    error = torch.where(valid[:, 0], 1 - (prediction * target).sum(1), 0.0)
    return error.sum() / valid.sum().clamp(min=1)


def edge_loss(
    logits: Tensor,
    edge: Tensor,
    *,
    form: Literal["hed", "released"],
    contours: Tensor | None = None,
    division: Literal["exact", "whole"] = "exact",
) -> Tensor:
    """Weighted binary cross-entropy of the contours, averaged over all pixels of the batch.

    Contours are known everywhere, so no pixel is left out. With c contour pixels in an image, and P pixels in all:

    - `hed`: a contour pixel weighs 1 - c / P, any other c / P, so that both classes count alike. Source: Xie & Tu,
      ICCV 2015, equation 2, as a mean over pixels instead of their sum.
    - `released`: every pixel, of either class, weighs (P - c) / c, which balances nothing and makes images with few
      contours count more. Source: docs/reproduction.md, section 4.1. Where c is smaller than their loader lets
      through (350 of 227 x 227 pixels), that number stands for it: the weight ends at 146, also without any contour.

    Args:
        logits: (N, 1, S, S).
        edge: (N, 1, S, S), 1 on a contour, else 0.
        form: see above.
        contours: (N,), c, where it is counted elsewhere than in `edge`; P is S x S all the same
            (docs/reproduction.md, sections 4.7 and 5.4).
        division: `whole` drops what (P - c) / c has behind the point, as torch 0.4 does with whole numbers
            (docs/reproduction.md, section 5.3).
    """
    logits, edge = at_least_float32(logits), at_least_float32(edge)
    pixels = edge[0].numel()
    contours = edge.sum((1, 2, 3)) if contours is None else at_least_float32(contours)
    contours = contours[:, None, None, None].clamp(max=pixels)  # of a stored image there may be more
    if form == "hed":
        fraction = contours / pixels
        weight = edge * (1 - fraction) + (1 - edge) * fraction
    else:
        contours = contours.clamp(min=_LEAST_CONTOURS * pixels / _THEIR_PIXELS)
        weight = (pixels - contours) / contours
        weight = weight.trunc() if division == "whole" else weight
    return F.binary_cross_entropy_with_logits(logits, edge, weight)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor as it is, or in float32 where it has less precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
