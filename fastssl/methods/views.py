"""Parts of photos as networks see them: cut out, resized, normalised; all of a batch at once and on its device."""

from __future__ import annotations

import math
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.backbones import Backbone

_LEAST_DEVIATION = 1e-3
"""Of an image in 0..1; a flat part is not blown up to noise."""


_LEAST_SIDE = 64
"""Of what a backbone sees: maps of smaller images have a single place, of which AlexNet's spread fc6 sees nothing."""


def input_side(backbone: Backbone, length: int) -> int:
    """The least side that the backbone takes of square images that hold `length` pixels, and 64 at least."""
    return next(side for side in count(max(length, _LEAST_SIDE)) if backbone.takes(side, side))


def windows(image: Tensor, top: Tensor, left: Tensor, length: int) -> Tensor:
    """Square windows of images, as they are. A window must lie inside its image.

    Args:
        image: (N, C, H, W).
        top: (N, K) or, where channels differ, (N, K, C) int64: first row of each window.
        left: the same of the first column.
        length: side of every window, in pixels.

    Returns:
        (N, K, C, length, length).
    """
    num, channels, height, width = image.shape
    corner = top * width + left
    corner = corner[..., None].expand(-1, -1, channels) if corner.dim() == 2 else corner
    plane = torch.arange(num * channels, device=image.device).view(num, 1, channels) * (height * width)
    line = torch.arange(length, device=image.device, dtype=torch.int32)
    # On a CPU six times as fast as an index in brackets; a batch has fewer than 2^31 values.
    index = (corner + plane).int()[..., None, None] + (line[:, None] * width + line)
    return image.reshape(-1).index_select(0, index.flatten()).view(index.shape)


def resized(views: Tensor, side: int) -> Tensor:
    """Square views (..., S, S) by linear interpolation, (..., side, side); those of that side as they are."""
    # Planes by themselves: with three channels torch takes twice as long on a CPU.
    planes = views.reshape(-1, 1, *views.shape[-2:])
    return F.interpolate(planes, side, mode="bilinear").view(*views.shape[:-2], side, side)


def standardised(views: Tensor) -> Tensor:
    """Each channel of each view less its own mean and by its own deviation, so that neither tells where a view was.

    Args:
        views: (..., C, S, S) floats.
    """
    moved = views - views.mean(dim=(-2, -1), keepdim=True)
    # On a CPU ten times as fast as torch's variance.
    deviation = torch.linalg.vector_norm(moved, dim=(-2, -1), keepdim=True) / math.sqrt(
        views.shape[-2] * views.shape[-1]
    )
    return moved.div_(deviation.clamp(min=_LEAST_DEVIATION))
