"""Matching: whether a point of a photo is found again by its features when the photo is bent and lit otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.addresses import masked
from fastssl.backbones import first_centres
from fastssl.batch import IMAGE_MEAN
from fastssl.config import Config
from fastssl.evaluate.evaluation import Dataset, Measured, Metric, Row, Sheet
from fastssl.evaluate.features import check_finite, photographs, words_of_bootstrap
from fastssl.evaluate.subject import Subject, every_sample, statistics_of
from fastssl.loader import Domain
from fastssl.metrics import bootstrap_interval

_DISTANCES = {"within_8": 8, "within_16": 16}
"""From the true place, in pixels, up to which a match is right."""
_POINTS = 16
"""Points of a photo from left to right, and from top to bottom."""
_SEED = 0
_ROTATION, _SCALE, _SHIFT, _CORNER = 30, 1.25, 0.25, 0.1
_GAMMA, _CONTRAST, _BRIGHTNESS, _NOISE = 1.4, 1.4, 0.15, 0.03
_WARPS = (
    f"rotated by up to {_ROTATION} degrees, scaled by 1/{_SCALE} to {_SCALE}, shifted by up to {_SHIFT} of the side, "
    f"each corner by up to {_CORNER} more; gamma 1/{_GAMMA} to {_GAMMA}, contrast 1/{_CONTRAST} to {_CONTRAST}, "
    f"brightness by up to {_BRIGHTNESS}, noise of deviation up to {_NOISE}, for colours from 0 to 1; seed {_SEED}"
)
_AT_ONCE = 8
"""Photos whose maps are in memory together."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Whether points of a photo are found again, by their features, in a warped copy of it.

    Each photo is bent by a homography, its brightness, contrast and gamma are changed, and noise is added. A point of
    the photo is matched with the position of the copy's map whose features are most like its own, by the cosine. All
    layers of the backbone are measured. The protocol is our own.
    """

    name: ClassVar[str] = "matching"
    title: ClassVar[str] = "Points found again"
    note: ClassVar[str] = (
        "Photos are warped and their colours are changed. Points on a grid of each photo are looked for in its warped "
        "copy, by the features of a layer. One is found if the match lies within 8, or 16, pixels of its true place. "
        "Unmoved is what is found by looking for every point where it was. A deep layer has few positions, far apart: "
        "not all of its matches can lie within 8 pixels, and the conditions tell how many can."
    )
    sheet: ClassVar[Sheet | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(
            Metric(
                path=(name,),
                name=f"Found within {pixels} pixels",
                group="Compared layer",
                key=f"Points found within {pixels} px",
                better="higher",
            )
            for name, pixels in _DISTANCES.items()
        ),
        *(
            Metric(
                path=("layers", "*", name),
                name="*",
                group=f"Each layer, found within {pixels} pixels",
                better="higher",
            )
            for name, pixels in _DISTANCES.items()
        ),
    )

    real: Annotated[Dataset, "Packed dataset of held-out photos: a folder or an address."]

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: points can be matched by any features."""
        return ""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Match the points of all photos by the features of every layer.

        Points that leave the picture do not count. Intervals are of a bootstrap over photographs: over the photos'
        classes, where all have one.

        Raises:
            DataError: the dataset is missing or of rendered images, the training data are not those of the run, or
                features are not finite.
        """
        images = subject.domain("real", self.real)
        (photos,) = images.samples.datasets
        groups = photographs(photos)
        again = subject.reestimated(images, until=subject.backbone.last)
        subjects = [subject, *([again] if again else []), *beside, *subject.baselines()]
        centres = {kind: first_centres(kind) for kind in {type(one.backbone) for one in subjects}}
        matches = {one.name: match_photos(one, one.sees(images), centres[type(one.backbone)]) for one in subjects}
        own, compared = matches[subject.name], {one.name: one.layer for one in subjects}
        matches["unmoved"] = own.of_unmoved()
        compared["unmoved"] = subject.layer
        rows = [
            _row(metric, matches, compared, groups) for stated in self.metrics for metric in stated.of_each(own.found)
        ]
        attainable = own.attainable[subject.layer].sum(dim=0) / own.points.sum()
        conditions = {
            "layer": subject.layer,
            "real": masked(str(self.real)),
            "images": len(photos),
            "points": int(own.points.sum()),
            "size": subject.config.data.size,
            "warps": _WARPS,
            "attainable_at_the_compared_layer": dict(zip(_DISTANCES, attainable.tolist(), strict=True)),
            "statistics": statistics_of(subject, subjects),
            "intervals": words_of_bootstrap(groups),
        }
        return Measured(rows=rows, conditions=conditions)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Numbers of points of N photos, (N,) or (N, 2) for the two distances, float64 on the CPU."""

    points: Tensor
    """(N,), that are still seen in the warped photo."""
    found: Mapping[str, Tensor]
    """By layer (N, 2), whose match is near the true place."""
    attainable: Mapping[str, Tensor]
    """By layer (N, 2), near whose true place the map has a position."""
    unmoved: Tensor
    """(N, 2), whose true place is near the old one."""

    def of_unmoved(self) -> Self:
        """What is found, at any layer, by looking for every point where it was."""
        return type(self)(
            points=self.points,
            found=dict.fromkeys(self.found, self.unmoved),
            attainable=self.attainable,
            unmoved=self.unmoved,
        )


def _row(metric: Metric, matches: Mapping[str, Matches], compared: Mapping[str, str], groups: Tensor) -> Row:
    """A metric of those that have its layer, or of the layers by which each is compared."""
    number = list(_DISTANCES).index(metric.path[-1])
    values, intervals = {}, {}
    for name, one in matches.items():
        layer = metric.path[1] if len(metric.path) > 1 else compared[name]
        if layer not in one.found:
            continue
        found = one.found[layer][:, number]
        values[name] = float(found.sum() / one.points.sum())
        if interval := bootstrap_interval(found, one.points, groups):
            intervals[name] = interval
    return Row(metric, values, intervals)


@torch.no_grad()
def match_photos(subject: Subject, images: Domain, centres: Mapping[str, float]) -> Matches:
    """Look for the points of every photo of a domain in its warped copy.

    Args:
        subject: whose features are matched, at each layer.
        images: photos, as it sees them.
        centres: of the first position of each layer's map (`fastssl.backbones.first_centres`).

    Raises:
        DataError: features are not finite.
    """
    info = subject.backbone.feature_info
    parts = []
    for photos, warps in _few_at_once(images, Warps.drawn(len(images.samples), images.config.data.size)):
        first, second = subject.backbone(photos), subject.backbone(warps.of(photos))
        check_finite(first | second)
        points, moved, seen = warps.points(photos.device)
        matched = {
            layer: match_points(first[layer], second[layer], points, centres[layer], info[layer].stride)
            for layer in info
        }
        nearest = {layer: _nearest(moved, second[layer], centres[layer], info[layer].stride) for layer in info}
        parts.append(
            Matches(
                points=seen.sum(dim=1).double().cpu(),
                found={layer: _near(places, moved, seen) for layer, places in matched.items()},
                attainable={layer: _near(places, moved, seen) for layer, places in nearest.items()},
                unmoved=_near(points.expand_as(moved), moved, seen),
            )
        )
    return Matches(
        points=torch.cat([part.points for part in parts]),
        found={layer: torch.cat([part.found[layer] for part in parts]) for layer in info},
        attainable={layer: torch.cat([part.attainable[layer] for part in parts]) for layer in info},
        unmoved=torch.cat([part.unmoved for part in parts]),
    )


def _few_at_once(images: Domain, warps: Warps) -> Iterator[tuple[Tensor, Warps]]:
    """Photos and their warps, some at a time."""
    first = 0
    with every_sample(images) as batches:
        for batch in batches:
            for photos in batch.image.float().split(_AT_ONCE):
                yield photos, warps.some(first, len(photos))
                first += len(photos)


def match_points(first: Tensor, second: Tensor, points: Tensor, centre: float, stride: int) -> Tensor:
    """The places whose features are most like those of points, by the cosine.

    Args:
        first: a layer's map of N photos, (N, C, h, w); at a point it is interpolated bilinearly.
        second: the same of their copies, of which all positions are looked at.
        points: (P, 2), x and y in pixels, the first pixel's centre being 0.
        centre: pixel of the first position, from left and from top.
        stride: pixels from one position to the next.

    Returns:
        (N, P, 2), in pixels of the copies.
    """
    photos, _, height, width = first.shape
    sides = torch.tensor([width, height], device=points.device)
    places = (2 * (points - centre) / stride + 1) / sides - 1  # as grid_sample counts, from edge to edge of the map
    grid = places.to(first).expand(photos, 1, -1, -1)
    sampled = F.grid_sample(first, grid, mode="bilinear", padding_mode="border", align_corners=False)
    wanted = F.normalize(sampled[:, :, 0], dim=1).transpose(1, 2)
    best = (wanted @ F.normalize(second.flatten(2), dim=1)).argmax(dim=2)
    across = second.shape[3]
    return centre + stride * torch.stack([best % across, best // across], dim=2).to(points)


def _nearest(moved: Tensor, features: Tensor, centre: float, stride: int) -> Tensor:
    """The positions of a map that are nearest to places, (N, P, 2) in pixels."""
    last = torch.tensor([features.shape[3] - 1, features.shape[2] - 1], device=moved.device)
    positions = torch.minimum(((moved - centre) / stride).round().clamp(min=0), last)
    return centre + stride * positions


def _near(places: Tensor, moved: Tensor, seen: Tensor) -> Tensor:
    """Of N photos, how many points that are seen lie near their true places: (N, 2), for the two distances."""
    away = (places - moved).norm(dim=2)
    return torch.stack([((away <= pixels) & seen).sum(dim=1) for pixels in _DISTANCES.values()], dim=1).double().cpu()


@dataclass(frozen=True, kw_only=True)
class Warps:
    """How N square photos are bent and lit otherwise. The same seed gives the same, for photos of any size."""

    size: int
    """Side of the photos in pixels."""
    first: int
    """The number of the first photo."""
    homographies: Tensor
    """(N, 3, 3) float64, from a place in the photo to that in its copy; both go from -1 to 1, from edge to edge."""
    light: Tensor
    """(N, 4) float64: gamma, contrast, brightness, and the deviation of the noise."""

    @classmethod
    def drawn(cls, count: int, size: int) -> Self:
        """Warps of as many photos, all from one seed."""
        generator = torch.Generator().manual_seed(_SEED)
        draws = 2 * torch.rand(count, 16, dtype=torch.float64, generator=generator) - 1
        angle, scale = math.radians(_ROTATION) * draws[:, 0], _SCALE ** draws[:, 1]
        turned = scale[:, None, None] * torch.stack(
            [torch.stack([angle.cos(), -angle.sin()], dim=1), torch.stack([angle.sin(), angle.cos()], dim=1)], dim=1
        )
        corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
        shifts = 2 * _SHIFT * draws[:, None, 14:] + 2 * _CORNER * draws[:, 2:10].reshape(count, 4, 2)
        found = homographies(corners, corners @ turned.mT + shifts)
        gamma, contrast = _GAMMA ** draws[:, 10], _CONTRAST ** draws[:, 11]
        light = torch.stack([gamma, contrast, _BRIGHTNESS * draws[:, 12], _NOISE * draws[:, 13].abs()], dim=1)
        return cls(size=size, first=0, homographies=found, light=light)

    def some(self, first: int, count: int) -> Warps:
        """Those of some of the photos."""
        part = slice(first, first + count)
        return Warps(size=self.size, first=first, homographies=self.homographies[part], light=self.light[part])

    def points(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The points, their places in the copies, and whether they are seen there.

        Returns:
            (P, 2) and (N, P, 2), float64 x and y in pixels; (N, P) bool.
        """
        middles = (2 * torch.arange(_POINTS, dtype=torch.float64) + 1) / _POINTS - 1
        points = torch.cartesian_prod(middles, middles).flip(1)
        moved = projected(self.homographies, points)
        seen = (moved.abs() < 1).all(dim=2)
        return self._pixels(points).to(device), self._pixels(moved).to(device), seen.to(device)

    def _pixels(self, places: Tensor) -> Tensor:
        """Places from -1 to 1 as pixels, the first one's centre being 0."""
        return ((places + 1) * self.size - 1) / 2

    def of(self, photos: Tensor) -> Tensor:
        """The copies of photos (N, 3, S, S), bent and then lit otherwise; what no photo shows has the mean colour."""
        ends = torch.arange(self.size, dtype=torch.float64)
        middles = (2 * ends + 1) / self.size - 1
        grid = torch.cartesian_prod(middles, middles).flip(1)
        sources = projected(torch.linalg.inv(self.homographies), grid)
        sources = sources.reshape(len(photos), self.size, self.size, 2).to(photos)
        bent = F.grid_sample(photos, sources, mode="bilinear", padding_mode="zeros", align_corners=False)
        mean = torch.from_numpy(IMAGE_MEAN).to(photos)[:, None, None]
        gamma, contrast, brightness, deviation = self.light.to(photos).T[:, :, None, None, None].unbind()
        noise = torch.randn(
            len(photos), 1, self.size, self.size, generator=torch.Generator().manual_seed(_SEED + 1 + self.first)
        )
        colours = (bent + mean).clamp(0, 1).pow(gamma)
        colours = (colours - 0.5) * contrast + 0.5 + brightness + deviation * noise.to(photos)
        return colours.clamp(0, 1) - mean


def homographies(before: Tensor, after: Tensor) -> Tensor:
    """The homographies that move four points to four others: (4, 2) and (N, 4, 2) to (N, 3, 3), the last number 1."""
    x, y = before.expand_as(after).unbind(dim=2)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    u, v = after.unbind(dim=2)
    across = torch.stack([x, y, one, none, none, none, -u * x, -u * y], dim=2)
    down = torch.stack([none, none, none, x, y, one, -v * x, -v * y], dim=2)
    found: Tensor = torch.linalg.solve(torch.cat([across, down], dim=1), torch.cat([u, v], dim=1))
    return torch.cat([found, torch.ones_like(found[:, :1])], dim=1).reshape(-1, 3, 3)


def projected(homographies: Tensor, places: Tensor) -> Tensor:
    """Where homographies (N, 3, 3) move places (P, 2): (N, P, 2)."""
    moved = F.pad(places, (0, 1), value=1.0) @ homographies.mT
    found: Tensor = moved[..., :2] / moved[..., 2:]
    return found
