"""A Fast R-CNN on photos of known objects: the batches that it learns from, and what it detects."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastssl.errors import DataError
from fastssl.evaluate.detections import Detections, as_written
from fastssl.evaluate.fast_rcnn import (
    FastRCNN,
    boxes_of_regions,
    loss_of_regions,
    numbered,
    scaled,
    together,
    torchvision_operators,
)
from fastssl.evaluate.regions import Chosen, Offsets, Regions, Sampling, regions_of
from fastssl.sources.images import read_image
from fastssl.train import run_device

log = logging.getLogger(__name__)

_TELL_EVERY_S = 30.0


class Photo(NamedTuple):
    """A photo, and what is known of it."""

    identity: str
    path: Path
    size: tuple[int, int]
    """Width and height."""
    objects: Tensor
    """(M, 4) float64 boxes of those that are learnt."""
    classes: Tensor
    """(M,) int64, from 1."""
    proposals: Tensor
    """(P, 4) float32 boxes."""


def fingerprint(photos: Sequence[Photo]) -> str:
    """A hash of IDs, objects and proposals."""
    found = hashlib.sha256()
    for photo in photos:
        found.update(f"{photo.identity} {len(photo.objects)} ".encode())
        for part in photo[3:]:
            found.update(part.numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What each step learns from: some photos, and regions of each."""

    photos: Sequence[Photo]
    regions: Sequence[Regions]
    """Of each photo."""
    offsets: Offsets
    sampling: Sampling
    images_per_step: int
    scales: Sequence[int]
    """Lengths of the shorter side, one of which is drawn for each photo."""
    longest: int
    """Pixels that the longer side has at most."""
    flip: bool
    """Whether each photo is also seen in a mirror."""
    seed: int

    def loss(self, network: FastRCNN, step: int) -> Tensor:
        """Of a step, by its number; photos go round in a new order for each epoch.

        Raises:
            DataError: a photo that cannot be read.
        """
        generator = np.random.default_rng((self.seed, 1, step))
        first = step * self.images_per_step
        drawn = [self._drawn(place, generator) for place in range(first, first + self.images_per_step)]
        device = run_device()
        regions = numbered([chosen.boxes * scale for _, scale, chosen in drawn]).to(device)
        chosen = Chosen(*(torch.cat(parts).to(device) for parts in zip(*(one for *_, one in drawn), strict=True)))
        return loss_of_regions(network(together([image for image, *_ in drawn]), regions), chosen)

    def _drawn(self, place: int, generator: np.random.Generator) -> tuple[Tensor, float, Chosen]:
        """The image at a place of the endless sequence, by what its sides are multiplied, and regions of it."""
        epoch, place = divmod(place, len(self.photos) * (2 if self.flip else 1))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.photos) * (2 if self.flip else 1))
        mirror, number = divmod(int(order[place]), len(self.photos))
        photo = self.photos[number]
        pixels = read_image(photo.path, photo.size)
        short = self.scales[int(generator.integers(len(self.scales)))]
        image, scale = scaled(pixels[:, ::-1] if mirror else pixels, short, self.longest, run_device())
        width = photo.size[0] if mirror else None
        return image, scale, self.sampling.draw(self.regions[number], self.offsets, generator, width)


def regions_to_learn(photos: Sequence[Photo], sampling: Sampling) -> tuple[list[Photo], list[Regions]]:
    """The photos that have regions to learn from, and these.

    Raises:
        DataError: none has.
    """
    every = [(photo, regions_of(photo.objects, photo.classes, photo.proposals)) for photo in photos]
    usable = [(photo, regions) for photo, regions in every if sampling.usable(regions)]
    if not usable:
        raise DataError(
            "no photo has a region to learn from",
            seen=f"{len(every)} photos",
            expected="objects of the classes, or proposed boxes that overlap one enough",
        )
    return [photo for photo, _ in usable], [regions for _, regions in usable]


@dataclass(frozen=True, kw_only=True)
class Detecting:
    """How objects are detected."""

    scale: int
    """Length of the shorter side."""
    longest: int
    per_image: int
    """Detections of a class in a photo before suppression, at most."""
    mean_per_image: int
    """Detections of a class before suppression, the mean over the photos, at most: the score above which they stay."""
    suppression: float
    """Overlap with one of a higher score above which a detection is left out."""

    def detect(
        self, network: FastRCNN, photos: Sequence[Photo], offsets: Offsets, classes: Sequence[str], name: str
    ) -> dict[str, Detections]:
        """What a network detects in photos, by class.

        Raises:
            DataError: a photo that cannot be read, or scores that are not finite.
        """
        found: list[list[_Scored]] = [[] for _ in classes]
        network.eval()
        told = time.monotonic()
        for number, photo in enumerate(photos, 1):
            for of_class, scored in zip(found, self._of_photo(network, photo, offsets), strict=True):
                of_class.append(scored)
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                log.info("%s: objects of photo %d of %d", name, number, len(photos))
        return {name: self._of_class(photos, of_class) for name, of_class in zip(classes, found, strict=True)}

    @torch.no_grad()
    def _of_photo(self, network: FastRCNN, photo: Photo, offsets: Offsets) -> list[_Scored]:
        """The best ones of each class."""
        image, scale = scaled(read_image(photo.path, photo.size), self.scale, self.longest, run_device())
        boxes = photo.proposals.to(image)
        found = network(image[None], numbered([boxes * scale]))
        if not found.scores.isfinite().all():
            what, hint = "scores of regions are not finite", "the training has diverged; lower the learning rate"
            raise DataError(what, where=photo.identity, hint=hint)
        scores = found.scores.softmax(dim=1)[:, 1:]
        places = boxes_of_regions(found, boxes, offsets, *photo.size)
        best = scores.sort(dim=0, descending=True, stable=True).indices[: self.per_image]
        return [_Scored(scores[rows, column].cpu(), places[rows, column].cpu()) for column, rows in enumerate(best.T)]

    def _of_class(self, photos: Sequence[Photo], found: Sequence[_Scored]) -> Detections:
        """Those above the class's score, less what one of a higher score stands for."""
        scores = torch.cat([one.scores for one in found])
        most = self.mean_per_image * len(photos)
        least = scores.topk(most).values[-1].item() if len(scores) > most else -1.0
        images, kept = list[str](), list[_Scored]()
        for photo, one in zip(photos, found, strict=True):
            above = one.scores > least
            stay = suppressed(one.boxes[above], one.scores[above], self.suppression)
            kept.append(_Scored(one.scores[above][stay], one.boxes[above][stay]))
            images += [photo.identity] * len(stay)
        boxes = torch.cat([one.boxes for one in kept])
        return as_written(images, torch.cat([one.scores for one in kept]).numpy(), boxes.numpy())


class _Scored(NamedTuple):
    """Detections of a class in a photo, the best first."""

    scores: Tensor
    boxes: Tensor


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Numbers of the boxes that stay, the best first: those that overlap none that stays and has a higher score by more
    than a threshold."""
    # torchvision's boxes end where ours have their last pixel.
    ends = boxes + torch.tensor([0, 0, 1, 1], dtype=boxes.dtype)
    found: Tensor = torchvision_operators().nms(ends, scores, threshold)
    return found
