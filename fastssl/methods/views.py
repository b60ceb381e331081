"""Parts of photos as networks see them: cut out, resized, normalised; all of a batch at once and on its device."""

from __future__ import annotations

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


def cut(image: Tensor, top: Tensor, left: Tensor, length: float, side: int) -> Tensor:
    """Square windows of images, resized by linear interpolation.

    Between whole pixels values are blended; a window of `side` pixels at whole places is cut out as it is. A window
    must lie inside its image.

    Args:
        image: (N, C, H, W) floats.
        top: (N, K) or (N, K, C) floats, first row of each window; of each channel where they differ, which costs.
        left: the same of the first column.
        length: side of every window, in pixels of the image.
        side: of what is returned.

    Returns:
        (N, K, C, side, side).
    """
    num, channels, height, width = image.shape
    windows = top.shape[1]
    # Where windows of channels differ each channel is an image by itself.
    images = image if top.dim() == 2 else image.reshape(num * channels, 1, height, width)
    centres = (torch.arange(side, device=image.device, dtype=torch.float32) + 0.5) * (length / side)
    rows, columns = (
        (place.float() if place.dim() == 2 else place.float().transpose(1, 2)).reshape(len(images), windows, 1)
        + centres
        for place in (top, left)
    )
    rows, columns = rows * (2 / height) - 1, columns * (2 / width) - 1
    shape = (len(images), windows, side, side)
    grid = torch.stack([columns[:, :, None, :].expand(shape), rows[:, :, :, None].expand(shape)], dim=-1)
    found = F.grid_sample(
        images, grid.view(len(images), windows * side, side, 2), mode="bilinear", padding_mode="border",
        align_corners=False,
    )  # fmt: skip
    return found.view(num, channels, windows, side, side).transpose(1, 2)


def standardised(views: Tensor) -> Tensor:
    """Each channel of each view less its own mean and by its own deviation, so that neither tells where a view was.

    Args:
        views: (..., C, S, S) floats.
    """
    moved = views - views.mean(dim=(-2, -1), keepdim=True)
    deviation = (
        moved.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    )  # on a CPU five times as fast as torch's variance
    return moved / deviation.clamp(min=_LEAST_DEVIATION)
