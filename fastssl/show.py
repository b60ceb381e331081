"""Pictures of a packed dataset: a contact sheet with every plane, one sample large, and histograms.

Needs neither torch nor DALI; samples are read by `fastssl.shards.decode_sample`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count as counter
from itertools import takewhile
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import Sample
from fastssl.charts import Panel, disc, histogram, panels
from fastssl.errors import DataError, UsageError
from fastssl.faults import machine_faults_named
from fastssl.pictures import (
    FADED,
    Picture,
    above,
    beside,
    bordered,
    depth_key,
    depth_picture,
    edge_picture,
    enlarged,
    hatched,
    normal_key,
    normal_picture,
    words,
    write_picture,
)
from fastssl.shards import ShardSet, decode_sample

COUNTED = 500
"""Samples that go into the histograms of a larger dataset."""

_MARGIN = 16
_CELL = (128, 256)
_LARGE = (384, 512)
"""Smallest and largest side of a plane, in pixels of the sheet."""
_PHOTO_ROW = 1100
_TOP_MILLIMETRES = 1 << 16
_DISC = 64
"""Cells across the disc of normal directions."""
_VALID = (190, 225, 195)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One sample in numbers."""

    key: str
    shard: str
    member_bytes: dict[str, int]
    class_index: int | None
    """Class."""
    brightness: float
    """Mean gray level, 0 to 255."""
    depth_m: tuple[float, float, float] | None
    """Smallest, median and largest known depth; None where there is none."""
    valid: float | None
    """Fraction of pixels with known depth and normal; None for a photo, as is the next."""
    contours: float | None
    """Fraction of pixels with a contour."""

    def lines(self) -> list[str]:
        """The numbers in words, without the key."""
        lines = [f"shard {self.shard}"]
        lines += [f"{name} {size / 1000:.1f} kB" for name, size in self.member_bytes.items()]
        if self.class_index is not None:
            lines.append(f"class {self.class_index}")
        lines.append(f"mean gray level {self.brightness:.0f} of 255")
        if self.valid is not None and self.contours is not None:
            near_far = "no depth known"
            if self.depth_m is not None:
                near, median, far = self.depth_m
                near_far = f"depth {near:.2f} to {far:.2f} m, median {median:.2f} m"
            lines += [near_far, f"valid {self.valid:.1%} of pixels", f"contours {self.contours:.1%} of pixels"]
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What was written."""

    pictures: list[Path]
    samples: list[Facts]


def show(
    path: str | PathLike[str],
    out: Path,
    *,
    count: int = 12,
    seed: int = 0,
    key: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Shown:
    """Write a contact sheet of some samples to `out`, and histograms beside it; or with `key` this sample alone.

    Samples are drawn by the seed from all shards alike. Histograms are of at most `COUNTED` samples; they go into a
    file of the same name that ends in ``_histograms``.

    Args:
        path: packed dataset, a folder or an address.
        out: PNG file.
        progress: called after each sample with the number that is done, and of all.

    Raises:
        DataError: the dataset cannot be read, or has no such key; the nearest keys are offered.
        UsageError: `out` is no name of a PNG file in a folder that exists, or `count` is below 1.
        MachineError: a picture cannot be written.
    """
    _check(out, count)
    shards = ShardSet(path)
    if key is not None:
        index = find(shards, key)
        sample = decode_sample(shards, index)
        facts = sample_facts(shards, index, sample)
        _write(sample_page(sample, facts, title(shards, key)), out)
        return Shown(pictures=[out], samples=[facts])
    chosen, counted = drawn(shards.shard_sizes, count, seed), drawn(shards.shard_sizes, COUNTED, seed)
    done, total = counter(1), len(chosen) + len(counted)

    def read(indices: Sequence[int]) -> Iterator[tuple[Sample, Facts]]:
        for index in indices:
            sample = decode_sample(shards, index)
            yield sample, sample_facts(shards, index, sample)
            if progress is not None:
                progress(next(done), total)

    samples = list(read(chosen))
    values = Values()
    for sample, facts in read(counted):
        values.add(sample, facts)
    histograms = out.with_name(f"{out.stem}_histograms{out.suffix}")
    _write(contact_sheet(samples, title(shards, _which(len(chosen), shards, f"drawn with seed {seed}"))), out)
    which = f"histograms of {_which(len(counted), shards, 'drawn')}"
    _write(histogram_page(values, title(shards, which)), histograms)
    return Shown(pictures=[out, histograms], samples=[facts for _, facts in samples])


def _write(picture: Image.Image, path: Path) -> None:
    with machine_faults_named(path):
        write_picture(picture, path)


def _which(number: int, shards: ShardSet, how: str) -> str:
    return f"all {number:,} samples" if number == len(shards) else f"{number:,} of {len(shards):,} samples, {how}"


def _check(out: Path, count: int) -> None:
    if out.suffix.lower() != ".png":
        raise UsageError("the picture's name does not end in .png", where=out, hint="choose another --out")
    if not out.parent.is_dir():
        raise UsageError("there is no such folder for the picture", where=out.parent, hint="make it, or choose another")
    if count < 1:
        raise UsageError("there is nothing to show", where="--count", seen=count, expected="1 or more")


def title(shards: ShardSet, what: str) -> list[str]:
    """The dataset in two lines."""
    manifest = shards.manifest
    size = sum(entry.bytes for entry in manifest.shards) / 1e6
    facts = [
        f"{manifest.domain} ({manifest.layout})",
        f"{manifest.samples:,} samples of {manifest.width} x {manifest.height} pixels",
        f"{size:,.1f} MB in {len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}",
        f"licence {manifest.licence}",
    ]
    return [f"{manifest.source}: {what}", ", ".join(facts)]


# Which samples


def drawn(sizes: Sequence[int], count: int, seed: int) -> list[int]:
    """Numbers of `count` samples, ascending: from each shard as many as from the others, as far as it has them.

    Args:
        sizes: number of samples of each shard.
        count: at most; all samples if there are fewer.
        seed: the same one gives the same samples.
    """
    held = np.array(sizes)
    rng = np.random.default_rng(seed)
    quota = np.zeros_like(held)
    left = min(count, int(held.sum()))
    while left:
        turn = rng.permutation(np.flatnonzero(quota < held))[:left]
        quota[turn] += 1
        left -= len(turn)
    starts = np.cumsum(held) - held
    return [
        int(index)
        for start, size, number in zip(starts, held, quota, strict=True)
        for index in start + np.sort(rng.choice(size, number, replace=False))
    ]


def find(shards: ShardSet, key: str) -> int:
    """Number of the sample with this key.

    Raises:
        DataError: there is none; the nearest keys are offered.
    """
    for index in range(len(shards)):
        if shards.key(index) == key:
            return index
    keys = (shards.key(index) for index in range(len(shards)))
    nearest = heapq.nlargest(3, keys, key=lambda other: _likeness(other, key.lower()))
    raise DataError("the dataset has no such key", where=shards.path, seen=key, expected=f"{', '.join(nearest)}?")


def _likeness(one: str, other: str) -> tuple[int, int]:
    """How many characters they share at their ends: all of the shorter one but for the place of a slip."""
    front, back = (
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one[::step], other[::step], strict=False)))
        for step in (1, -1)
    )
    return min(front + back, len(one), len(other)), -abs(len(one) - len(other))


def sample_facts(shards: ShardSet, index: int, sample: Sample) -> Facts:
    """Numbers of a sample."""
    image = shards.image_codec.member
    names = [image, shards.target_member] if shards.has_targets else [image]
    sizes = {name: shards.member(index, name).size for name in names}
    depth_m = valid = contours = None
    if sample.depth is not None and sample.valid is not None and sample.edge is not None:
        known = sample.depth[sample.depth > 0]
        if len(known):
            near, median, far = (round(float(depth), 4) for depth in (known.min(), np.median(known), known.max()))
            depth_m = (near, median, far)
        valid, contours = float(sample.valid.mean()), float(sample.edge.mean())
    return Facts(
        key=sample.key,
        shard=shards.shard_name(index),
        member_bytes=sizes,
        class_index=sample.class_index,
        brightness=float(sample.image.mean()),
        depth_m=depth_m,
        valid=valid,
        contours=contours,
    )


# Sheets of samples


def contact_sheet(samples: Sequence[tuple[Sample, Facts]], heading: Sequence[str]) -> Image.Image:
    """All planes of labelled samples in rows, or photos side by side, each with its key and what is known about it."""
    if any(sample.depth is not None for sample, _ in samples):
        body = _labelled_rows(samples)
    else:
        cells = [_photo(sample, facts) for sample, facts in samples]
        body = _in_rows(cells, max(_PHOTO_ROW // (cells[0].width + 10), 1), gap=10)
    return bordered(above([_heading(heading, body.width), body], gap=14), _MARGIN)


def sample_page(sample: Sample, facts: Facts, heading: Sequence[str]) -> Image.Image:
    """One sample, its planes large, its numbers in words."""
    scale = _depth_scale([facts])
    cells = [_headed(name, picture) for name, picture in _planes(sample, scale, _LARGE).items()]
    width = cells[0].width
    cells.append(above([words(["facts"], width), words(facts.lines(), width, size=16)]))
    body = _in_rows(cells, 3, gap=10)
    blocks = [_heading(heading, body.width), body]
    if sample.depth is not None:
        blocks.append(_legend(scale))
    return bordered(above(blocks, gap=14), _MARGIN)


def _labelled_rows(samples: Sequence[tuple[Sample, Facts]]) -> Image.Image:
    scale = _depth_scale([facts for _, facts in samples])
    rows = []
    for number, (sample, facts) in enumerate(samples):
        planes = _planes(sample, scale, _CELL)
        cells = [
            _headed(name, picture) if number == 0 else Image.fromarray(picture) for name, picture in planes.items()
        ]
        row = beside(cells)
        first, *others = facts.lines()
        rows.append(
            above(
                [
                    row,
                    words([facts.key], row.width, size=13),
                    words([", ".join([first, *others])], row.width, colour=FADED),
                ],
                gap=3,
            )
        )
    return above([_legend(scale), *rows], gap=12)


def _photo(sample: Sample, facts: Facts) -> Image.Image:
    picture = enlarged(sample.image, *_CELL)
    width = picture.shape[1]
    class_index = "no class" if facts.class_index is None else f"class {facts.class_index}"
    return above(
        [
            Image.fromarray(picture),
            words([facts.key], width, most=4),
            words([f"{class_index}, {facts.shard}"], width, size=11, colour=FADED),
        ],
        gap=2,
    )


def _in_rows(cells: Sequence[Image.Image], columns: int, *, gap: int) -> Image.Image:
    return above([beside(cells[start : start + columns], gap=gap) for start in range(0, len(cells), columns)], gap=gap)


def _planes(sample: Sample, scale: tuple[float, float], sides: tuple[int, int]) -> dict[str, Picture]:
    planes, unknown = {"image": sample.image}, dict[str, NDArray[np.bool_]]()
    if sample.depth is not None and sample.normal is not None and sample.edge is not None and sample.valid is not None:
        blank = np.broadcast_to(np.array(_VALID, np.uint8), sample.image.shape)
        unknown = {"depth": sample.depth == 0, "normal": (sample.normal == 0).all(axis=2), "valid": ~sample.valid}
        planes |= {
            "depth": depth_picture(sample.depth, *scale),
            "normal": normal_picture(sample.normal.transpose(2, 0, 1)),
            "contours": edge_picture(sample.edge.astype(np.float32)),
            "valid": blank,
        }
    shown = {name: enlarged(picture, *sides) for name, picture in planes.items()}
    return shown | {name: hatched(shown[name], _enlarged_mask(mask, sides)) for name, mask in unknown.items()}


def _enlarged_mask(mask: NDArray[np.bool_], sides: tuple[int, int]) -> NDArray[np.bool_]:
    return enlarged(mask[..., None].repeat(3, axis=2) * np.uint8(255), *sides)[..., 0] > 127


def _depth_scale(facts: Sequence[Facts]) -> tuple[float, float]:
    """Nearest and farthest depth of all of them, in metres."""
    ranges = [one.depth_m for one in facts if one.depth_m is not None]
    near, far = min((one[0] for one in ranges), default=1.0), max((one[2] for one in ranges), default=1.0)
    return (near, far) if near < far else (near / 1.1, far * 1.1)


def _headed(name: str, picture: Picture) -> Image.Image:
    return above([words([name], picture.shape[1]), Image.fromarray(picture)])


def _heading(lines: Sequence[str], width: int) -> Image.Image:
    return above([words(lines[:1], width, size=18), words(lines[1:], width, colour=FADED)])


def _legend(scale: tuple[float, float]) -> Image.Image:
    """What the colours mean."""
    unknown = Image.fromarray(hatched(np.zeros((34, 52, 3), np.uint8), np.ones((34, 52), bool)))
    normal = ["normal: the side that a surface", "shows. The ball is what a ball", "in front of the camera looks like."]
    return beside(
        [
            words(["depth"], 38),
            depth_key(*scale, 260),
            normal_key(52),
            words(normal, 200),
            Image.new("RGB", (52, 34), _VALID),
            words(["valid: depth and", "normal are known"], 100),
            unknown,
            words(["not known"], 70),
        ],
        gap=10,
    )


# Histograms


class Values:
    """Values of samples, counted. Pixels are counted exactly, so that memory does not grow with their number."""

    def __init__(self) -> None:
        self.facts: list[Facts] = []
        self.gray = np.zeros(256, np.int64)
        """Pixels by gray level, the rounded mean of red, green and blue."""
        self.millimetres = np.zeros(_TOP_MILLIMETRES, np.int64)
        """Pixels by depth; none at 0, which is not known."""
        self.directions = np.zeros((_DISC, _DISC), np.int64)
        """Pixels by their normal's y and x, from -1 to 1 in equal cells."""

    def add(self, sample: Sample, facts: Facts) -> None:
        """Count one sample."""
        self.facts.append(facts)
        gray = np.rint(sample.image.mean(axis=2, dtype=np.float32)).astype(np.intp)
        self.gray += np.bincount(gray.ravel(), minlength=256)
        if sample.depth is None or sample.normal is None:
            return
        millimetres = np.rint(sample.depth.astype(np.float64) * 1000).astype(np.intp)
        self.millimetres += np.bincount(millimetres.ravel(), minlength=_TOP_MILLIMETRES)
        self.millimetres[0] = 0
        known = sample.normal[sample.normal.any(axis=2)]
        cells = np.clip((known[:, :2] + 1) / 2 * _DISC, 0, _DISC - 1).astype(np.intp)
        places = cells[:, 1] * _DISC + cells[:, 0]
        self.directions += np.bincount(places, minlength=_DISC**2).reshape(_DISC, _DISC)


def histogram_page(values: Values, heading: Sequence[str]) -> Image.Image:
    """How the samples' values are distributed."""
    draw = list[Panel]()
    if values.millimetres.any():
        draw.append(_depth_panel(values.millimetres))
    if values.directions.any():
        draw.append(_normal_panel(values.directions))
    draw += [_panel(quantity, values.facts) for quantity in _QUANTITIES if quantity.values(values.facts)]
    draw.append(_gray_panel(values.gray))
    body = panels(draw)
    return bordered(above([_heading(heading, body.width), body], gap=18), _MARGIN)


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A number that a sample has, or has not."""

    title: str
    axis: str
    unit: str
    of: Callable[[Facts], float | None]
    axis_range: tuple[float, float] | None = None

    def values(self, facts: Sequence[Facts]) -> list[float]:
        return [number for number in map(self.of, facts) if number is not None]


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


_QUANTITIES = (
    _Quantity("Valid pixels of each sample", "% of its pixels", " %", lambda facts: _percent(facts.valid), (0, 100)),
    _Quantity("Contours of each sample", "% of its pixels", " %", lambda facts: _percent(facts.contours)),
    _Quantity("Size of each label block", "kB", " kB", lambda facts: _kilobytes(facts, of_image=False)),
    _Quantity("Size of each image", "kB", " kB", lambda facts: _kilobytes(facts, of_image=True)),
    _Quantity("Brightness of each image", "mean gray level, 0 to 255", "", lambda facts: facts.brightness, (0, 255)),
    _Quantity("Class of each sample", "class number", "", lambda facts: facts.class_index),
)


def _kilobytes(facts: Facts, *, of_image: bool) -> float | None:
    """Size of the sample's image, or of its label block, whatever their codecs."""
    image, *labels = facts.member_bytes.values()
    return image / 1000 if of_image else labels[0] / 1000 if labels else None


def _depth_panel(millimetres: NDArray[np.int64]) -> Panel:
    known = np.flatnonzero(millimetres)
    edges = np.geomspace(known[0] - 0.5, known[-1] + 0.5, 61)
    counts, _ = np.histogram(known, edges, weights=millimetres[known])
    return partial(
        histogram,
        counts=counts.astype(np.int64),
        edges=edges / 1000,
        title="Depth",
        unit="m, logarithmic axis",
        of="pixels",
        note=_ends(millimetres, " m", 1000),
        logarithmic=True,
    )


def _normal_panel(directions: NDArray[np.int64]) -> Panel:
    note = (
        "which way surfaces face: centre to the camera, rings\n30 and 60 degrees off; darker: more pixels, logarithmic"
    )
    return partial(disc, counts=directions, title="Normals", note=note)


def _gray_panel(gray: NDArray[np.int64]) -> Panel:
    return partial(
        histogram,
        counts=gray,
        edges=np.arange(257.0),
        title="Gray levels",
        unit="0 = black",
        of="pixels",
        note=_ends(gray, ""),
    )


def _ends(counts: NDArray[np.int64], unit: str, per_unit: int = 1) -> str:
    """Where the middle value lies, and nearly all of them."""
    fractions = np.cumsum(counts) / counts.sum()
    low, median, high = (int(np.searchsorted(fractions, fraction)) / per_unit for fraction in (0.01, 0.5, 0.99))
    return f"median {median:g}{unit}; 98 % from {low:g} to {high:g}{unit}"


def _panel(quantity: _Quantity, facts: Sequence[Facts]) -> Panel:
    values = quantity.values(facts)
    low, high = quantity.axis_range or (min(values), max(values))
    if all(isinstance(value, int) for value in values):
        low, high = low - 0.5, high + 0.5
        bins = min(round(high - low), 60)
    else:
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        bins = 40 if quantity.axis_range else int(np.clip(2 * math.sqrt(len(values)), 8, 40))
    counts, edges = np.histogram(values, bins, (low, high))
    unit = quantity.unit
    note = f"median {np.median(values):.4g}{unit}; from {min(values):.4g} to {max(values):.4g}{unit}"
    return partial(
        histogram, counts=counts, edges=edges, title=quantity.title, unit=quantity.axis, of="samples", note=note
    )
