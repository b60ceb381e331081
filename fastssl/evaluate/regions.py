"""Regions of images that a detector learns from: what each shows, and which ones a step takes.

R. Girshick, *Fast R-CNN*, ICCV 2015, section 2.3, and its code, `lib/roi_data_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastssl.evaluate.boxes import mirrored, offsets_to, overlaps

_LEAST_DEVIATION = 1e-6
"""Of offsets, below which all of a class are alike and are not divided by it."""


class Regions(NamedTuple):
    """Boxes of an image, its objects' own before the proposed ones."""

    boxes: Tensor
    """(R, 4) float32."""
    overlap: Tensor
    """(R,) float64: with the object that a box overlaps most; 0 where the image has none."""
    classes: Tensor
    """(R,) int64: class of that object, from 1; 0 where the image has none."""
    targets: Tensor
    """(R, 4) float32: box of that object; the box itself where the image has none."""


class Chosen(NamedTuple):
    """Regions of an image that a step learns from."""

    boxes: Tensor
    """(K, 4) float32."""
    classes: Tensor
    """(K,) int64; 0 is background."""
    offsets: Tensor
    """(K, 4) float32, normalised; of background they are not to be used."""


def regions_of(objects: Tensor, classes: Tensor, proposals: Tensor) -> Regions:
    """Objects, (M, 4), of classes from 1 on, (M,), and proposals, (P, 4), beside each other."""
    boxes = torch.cat([objects, proposals]).float()
    if not len(objects):
        nothing = torch.zeros(len(boxes), dtype=torch.int64)
        return Regions(boxes, nothing.double(), nothing, boxes)
    overlap, nearest = overlaps(boxes, objects).max(dim=1)
    found = torch.where(overlap > 0, classes[nearest], 0)
    return Regions(boxes, overlap, found, objects.float()[nearest])


class Offsets(NamedTuple):
    """Mean and deviation of the offsets of each class, by which they are normalised: (K + 1, 4) float32, 0 the
    background."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, images: Sequence[Regions], num_classes: int, least_overlap: float, *, flip: bool) -> Offsets:
        """Over all regions that overlap their object at least so much; with `flip`, also as a mirror shows them."""
        sums = torch.zeros(2, num_classes + 1, 4, dtype=torch.float64)
        counts = torch.zeros(num_classes + 1, 1, dtype=torch.float64)
        for image in images:
            near = image.overlap >= least_overlap
            offsets = offsets_to(image.boxes[near], image.targets[near]).double()
            for seen in (offsets, offsets * torch.tensor([-1, 1, 1, 1])) if flip else (offsets,):
                sums[0].index_add_(0, image.classes[near], seen)
                sums[1].index_add_(0, image.classes[near], seen.square())
                counts.index_add_(0, image.classes[near], torch.ones_like(seen[:, :1]))
        mean, squares = sums / counts.clamp(min=1)
        deviation = (squares - mean.square()).clamp(min=0).sqrt()
        return cls(mean.float(), torch.where(deviation > _LEAST_DEVIATION, deviation, 1.0).float())


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How regions are drawn for a step."""

    count: int
    """Of an image, at most."""
    foreground_fraction: float
    """Part of them that shows objects, at most."""
    foreground_overlap: float
    """Overlap with an object from which on a region shows it."""
    background_least: float
    """Overlap from which on a region that shows none is background; below, it is not used."""

    def usable(self, regions: Regions) -> bool:
        """Some of them can be drawn."""
        return bool((regions.overlap >= min(self.background_least, self.foreground_overlap)).any())

    def draw(self, regions: Regions, offsets: Offsets, generator: np.random.Generator, mirror: int | None) -> Chosen:
        """Regions of an image, those that show objects first.

        Args:
            mirror: width of the image where it is seen in a mirror.
        """
        overlap = regions.overlap.numpy()
        shown = np.flatnonzero(overlap >= self.foreground_overlap)
        rest = np.flatnonzero((overlap < self.foreground_overlap) & (overlap >= self.background_least))
        shown = generator.permutation(shown)[: round(self.foreground_fraction * self.count)]
        rest = generator.permutation(rest)[: self.count - len(shown)]
        numbers = torch.from_numpy(np.concatenate([shown, rest]))
        classes = regions.classes[numbers]
        classes[len(shown) :] = 0
        boxes, targets = regions.boxes[numbers], regions.targets[numbers]
        if mirror is not None:
            boxes, targets = mirrored(boxes, mirror), mirrored(targets, mirror)
        normalised = (offsets_to(boxes, targets) - offsets.mean[classes]) / offsets.deviation[classes]
        return Chosen(boxes, classes, normalised)
