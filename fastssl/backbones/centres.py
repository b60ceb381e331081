"""Where on the image the positions of a layer's map lie."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.backbones.backbone import Backbone
from fastssl.config import BackboneSettings

_POSITIONS = 32
"""Positions of the coarsest map from top to bottom, among which one is looked for that sees no border."""


@torch.no_grad()
def first_centres(kind: type[Backbone]) -> dict[str, float]:
    """The pixel of the image in the middle of what the first position of each layer's map looks at.

    Position (i, j) of a map has its centre at pixel (c + s i, c + s j), with c from here and s the layer's stride; the
    centre of the image's first pixel is 0. What a position looks at is found out, whatever the backbone is made of: by
    images of which one row is not a number, passed through a copy with few channels. Where that does not move on by one
    position every s pixels, as in a transformer, whose positions look at all rows or at windows of them, positions are
    taken for tiles side by side: c = (s - 1) / 2.

    Returns:
        By layer, in pixels; negative where a map begins outside of the image.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        thin = kind(BackboneSettings(backbone=kind.name, width=0.01, fc_channels=8)).eval()
    thin = thin.double()  # whose convolutions mix no other rows in, as fast algorithms of float32 do
    strides = {layer: info.stride for layer, info in thin.feature_info.items()}
    tiles = {layer: (stride - 1) / 2 for layer, stride in strides.items()}
    size = _tall_size(kind, max(strides.values()))
    if size is None:
        return tiles
    rows = size[0] // 2 + torch.arange(max(strides.values()))
    images = torch.zeros(len(rows), 3, *size, dtype=torch.float64)
    images[torch.arange(len(rows)), :, rows] = torch.nan
    found = {layer: _centre(features, rows.double(), strides[layer]) for layer, features in thin(images).items()}
    return {layer: tiles[layer] if centre is None else centre for layer, centre in found.items()}


def _centre(features: Tensor, rows: Tensor, stride: int) -> float | None:
    """The centre of the first position; None where what positions look at is not the same from one to the next.

    Args:
        features: (R, C, h, w), of images that are not a number in one row each.
        rows: (R,), these rows.
        stride: of the map.
    """
    seen = features.isnan().any(dim=(1, 3))
    if bool(seen[:, 0].any() or seen[:, -1].any() or not seen.any(dim=1).all()):
        return None
    first, last = seen.double().argmax(dim=1), seen.shape[1] - 1 - seen.double().flip(1).argmax(dim=1)
    centres = rows - stride * (first + last) / 2
    # Over as many rows as the stride has, what rounding adds to the first it takes from the last.
    centre = float(centres.mean())
    return centre if bool(((centres - centre).abs() <= stride).all()) else None


def _tall_size(kind: type[Backbone], stride: int) -> tuple[int, int] | None:
    """A height of many positions of the coarsest map and a width of few that a backbone takes; None: there is none."""
    least = _POSITIONS * stride
    # Few, not one: of that a dilated convolution may see nothing but what it is padded with.
    width = next((side for side in range(3 * stride, 2 * least) if kind.takes(side, side)), None)
    heights = range(least, least + 2 * stride)
    if width is None:
        return None
    return next(((height, width) for height in heights if kind.takes(height, width)), None)
