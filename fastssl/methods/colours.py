"""Colours in CIE Lab: out of a batch of photos, and in bins of their chroma.

L is lightness in 0..100, a and b are chroma, red over green and yellow over blue; white is D65, as sRGB's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastssl.batch import IMAGE_MEAN

GRID = 10.0
"""Between two bins, along a and along b."""
LARGEST, SMALLEST = 100.0, -110.0
"""Ends of the grid."""
_CELL = 5.0
_LINE = np.arange(SMALLEST, LARGEST, _CELL)
REACH = 14.25
"""How far from every colour of sRGB a bin may lie. The authors' list of 313 bins tells no rule; with this one there are
as many, of which 310 are theirs."""

# IEC 61966-2-1: linear sRGB to XYZ, each row divided by the white's.
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_TO_RELATIVE = _TO_XYZ / np.array([[0.950456], [1.0], [1.088754]])
_DARK = 0.04045
"""Level of sRGB below which its curve is a line."""
_STEEP, _FLAT = 216 / 24389, 24389 / 27
"""CIE's light below which the cube root is a line, and the slope of that line."""


def lab(image: Tensor) -> Tensor:
    """Lab of photos as batches have them, (N, 3, H, W) RGB in 0..1 less the mean; (N, 3, H, W) float32."""
    matrix = torch.tensor(_TO_RELATIVE.tolist(), device=image.device)
    relative = torch.einsum("rc,nchw->rnhw", matrix, _linear(image))
    x, y, z = _power(relative.clamp(min=_STEEP), 1 / 3).add_(relative.clamp_(max=_STEEP) - _STEEP, alpha=_FLAT / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def gray(image: Tensor) -> Tensor:
    """Photos as batches have them in black and white of the same lightness: their level (N, 1, H, W) in 0..1."""
    luminance = torch.tensor(_TO_RELATIVE[1].tolist(), device=image.device)
    return _level(torch.einsum("c,nchw->nhw", luminance, _linear(image))[:, None])


# Curves of two pieces are sums of what each adds: on a CPU a choice between them takes as long as the power.


def _linear(image: Tensor) -> Tensor:
    """Light of photos as batches have them, 0..1, float32."""
    mean = torch.tensor(IMAGE_MEAN.tolist(), device=image.device)[:, None, None]
    level = image.float() + mean
    steep = _power(level.clamp(_DARK, 1).add_(0.055).mul_(1 / 1.055), 2.4)
    return steep.add_(level.clamp_(0, _DARK).sub_(_DARK), alpha=1 / 12.92)


def _level(linear: Tensor) -> Tensor:
    """Of light, in 0..1."""
    dark = _DARK / 12.92
    steep = _power(linear.clamp(dark, 1), 1 / 2.4).mul_(1.055).sub_(0.055)
    return steep.add_(linear.clamp(0, dark).sub_(dark), alpha=12.92)


def _power(base: Tensor, exponent: float) -> Tensor:
    """In place; on a CPU in half the time of torch's."""
    return base.log2_().mul_(exponent).exp2_()


def rgb(colours: Tensor) -> Tensor:
    """Photos as batches have them, (N, 3, H, W), of Lab (N, 3, H, W); colours that sRGB lacks are cut off."""
    lightness, a, b = colours.unbind(dim=1)
    y = (lightness + 16) / 116
    roots = torch.stack([y + a / 500, y, y - b / 200])
    relative = torch.where(roots > _STEEP ** (1 / 3), roots**3, (116 * roots - 16) / _FLAT)
    matrix = torch.tensor(np.linalg.inv(_TO_RELATIVE).tolist(), device=colours.device)
    linear = torch.einsum("cr,rnhw->nchw", matrix, relative)
    mean = torch.tensor(IMAGE_MEAN.tolist(), device=colours.device)[:, None, None]
    return _level(linear) - mean


@lru_cache
def chroma_bins() -> NDArray[np.float64]:
    """(313, 2): a and b of the points of a grid of 10 that lie in or near the gamut of sRGB, by a and then by b."""
    surface = _surface_of_srgb()
    line = np.arange(SMALLEST, LARGEST + GRID, GRID)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    nearest = np.array([np.square(surface - point).sum(axis=1).min() for point in points])
    bins: NDArray[np.float64] = points[nearest <= REACH**2]
    return bins


def _surface_of_srgb(steps: int = 96) -> NDArray[np.float64]:
    """(M, 2): a and b of the faces of the RGB cube, which reach as far out as the whole of it."""
    level = np.linspace(0, 1, steps)
    first, second = (x.ravel() for x in np.meshgrid(level, level))
    faces = [np.insert(np.stack([first, second], axis=1), axis, end, axis=1) for axis in range(3) for end in (0.0, 1.0)]
    rgb = np.concatenate(faces)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    relative = linear @ _TO_RELATIVE.T
    x, y, z = np.where(relative > _STEEP, np.cbrt(relative), (_FLAT * relative + 16) / 116).T
    return np.stack([500 * (x - y), 200 * (y - z)], axis=1)


@lru_cache
def bins_near(neighbours: int) -> NDArray[np.int64]:
    """(cells, K): the bins that may be among the nearest of a colour, for each cell of the plane of a and b.

    Cells are squares of 5 from end to end of the grid, by a and then by b. So a search need not look at all bins.
    """
    corner = np.stack(np.meshgrid(_LINE, _LINE, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    before, after = corner - chroma_bins(), chroma_bins() - (corner + _CELL)
    nearest = np.linalg.norm(np.maximum(np.maximum(before, after), 0), axis=2)
    farthest = np.linalg.norm(np.maximum(np.abs(before), np.abs(after)), axis=2)
    # So near are that many bins, wherever in the cell the colour is.
    reach = np.sort(farthest, axis=1)[:, neighbours - 1 : neighbours]
    largest = (nearest <= reach).sum(axis=1).max()
    return np.argsort(nearest, axis=1, kind="stable")[:, :largest]


def soft_bins(chroma: Tensor, bins: Tensor, near: Tensor, neighbours: int, deviation: float) -> Tensor:
    """Colours as distributions over the bins next to them, each by a Gaussian of its distance.

    Args:
        chroma: (N, 2, h, w), a and b, which the grid of bins holds.
        bins: `chroma_bins`.
        near: `bins_near` of as many neighbours.
        neighbours: bins that a colour is spread over.
        deviation: of the Gaussian.

    Returns:
        (N, Q, h, w), sums over the bins are 1.

    Source: R. Zhang et al., *Colorful Image Colorization*, ECCV 2016, section 2.2.
    """
    places = chroma.permute(0, 2, 3, 1)
    cell = ((places - SMALLEST) / _CELL).long().clamp(0, len(_LINE) - 1)
    found = near[cell[..., 0] * len(_LINE) + cell[..., 1]]
    squares = (places[..., None, :] - bins[found]).square().sum(dim=-1)
    nearest, which = squares.topk(neighbours, largest=False)
    weight = F.softmax(-nearest / (2 * deviation**2), dim=-1)
    spread = weight.new_zeros(*weight.shape[:3], len(bins))
    return spread.scatter_(-1, found.gather(-1, which), weight).permute(0, 3, 1, 2)
