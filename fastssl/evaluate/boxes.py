"""Boxes of objects: how far two overlap, and a box as offsets from another.

Boxes are (N, 4): x1, y1, x2, y2 in pixels, counted from 0; their last pixels belong to them, as in PASCAL VOC's devkit,
so one of a single pixel has x1 = x2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each of N boxes with each of M: (N, M) float64."""
    boxes, others = boxes.double()[:, None], others.double()[None]
    left_top = torch.maximum(boxes[..., :2], others[..., :2])
    sides = (torch.minimum(boxes[..., 2:], others[..., 2:]) - left_top + 1).clamp(min=0)
    common = sides.prod(dim=2)
    return common / (_areas(boxes) + _areas(others) - common)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(dim=-1)


def offsets_to(boxes: Tensor, targets: Tensor) -> Tensor:
    """What moves boxes to targets, (N, 4) each: steps of the centre in sides of the box, and logarithms of the sides'
    ratios, (N, 4) float32. R. Girshick et al., *Rich feature hierarchies*, CVPR 2014, appendix C.

    Sides are x2 - x1, as in the code of Fast R-CNN, or 1 in a box of one pixel, where theirs has no finite offsets.
    """
    centres, sides = _centres_and_sides(boxes.double())
    target_centres, target_sides = _centres_and_sides(targets.double())
    return torch.cat([(target_centres - centres) / sides, (target_sides / sides).log()], dim=-1).float()


def moved(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Boxes that `offsets_to` are of, (..., 4): its inverse."""
    centres, sides = _centres_and_sides(boxes)
    centres = centres + offsets[..., :2] * sides
    half = offsets[..., 2:].exp() * sides / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, torch.where(sides > 0, sides, torch.ones_like(sides))


def clipped(boxes: Tensor, width: int, height: int) -> Tensor:
    """The parts of boxes, (..., 4), that lie in an image."""
    most = torch.tensor([width - 1, height - 1, width - 1, height - 1], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), most)


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes in the image seen in a mirror, (N, 4)."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=1)
