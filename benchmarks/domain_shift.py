"""Does adaptation help, where that can be measured: rooms that are changed in appearance alone.

    python benchmarks/domain_shift.py [--rooms 2500] [--seeds 3] [--only camera,flat] [--jobs 2] [--work DIR]

Source and target are different rooms of the same renderer, and one of the two is changed by a rule that leaves depth,
normals and contours as they are. The target's labels are used for testing alone, but in the row that says so. So the
gap that a shift opens is known, and what adaptation closes of it can be told.

Networks learn the tasks on the source first. Each variant then goes on from there for some steps with a discriminator
of its own form, or without one, and is measured on held-out rooms of the target: with the running statistics of its
batch norms, and with those re-estimated on the target's images (AdaBN). An error falls, too, where predictions only
retreat to what rooms look like on average, so the correlation of what goes beyond that average is told beside it.

Rooms are rendered once, and every result is kept in DIR, so that a study that is killed goes on where it stood. Results
go to `results/domain_shift.json`, and a figure beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import write_result
from matplotlib import pyplot as plt
from rooms_study import (
    SIZE,
    Array,
    Change,
    Photos,
    Rooms,
    measured_once,
    names_of,
    pack_once,
    rendered,
    spread,
    threads_of,
    train_once,
)
from scipy.ndimage import gaussian_filter

from fastssl.batch import PLANES, Record
from fastssl.evaluate import Tasks, evaluate
from fastssl.evaluate.subject import Subject, every_sample, run_subject
from fastssl.loader import Domain
from fastssl.telemetry import read_metrics

PARTS = {"source": 0.5, "target": 0.4, "test": 0.1}
"""Fractions of the rooms."""


def camera(record: Record, random: np.random.Generator) -> Array:
    """A bad camera: less contrast, another gamma, dark corners, blur and noise."""
    image = 0.25 + 0.5 * (record.image / 255.0) ** 1.6
    rows, columns = np.indices(image.shape[:2]) / np.array(image.shape[:2])[:, None, None] - 0.5
    image *= (1 - 0.9 * (rows**2 + columns**2))[..., None]
    return _noisy(gaussian_filter(image, (1, 1, 0)), 0.03, random)


def negative(record: Record, random: np.random.Generator) -> Array:
    """A negative with a bent tone curve, blur and noise."""
    return _noisy(gaussian_filter((1 - record.image / 255.0) ** 1.5, (0.7, 0.7, 0)), 0.03, random)


def flat(record: Record, random: np.random.Generator) -> Array:
    """A plain renderer: one gray for each object, lit from the camera's upper left; no texture, lamp or shadow."""
    assert record.instance is not None
    assert record.normal is not None
    normal = record.normal / 127.5 - 1 if record.normal.dtype == np.uint8 else record.normal
    light = np.array([-0.4, -0.7, -0.6])
    lit = np.clip(normal @ (light / np.linalg.norm(light)), 0, 1)
    grays = np.random.default_rng(7).uniform(0.35, 1.0, 1 << 16)  # by an object's identity, the same in every room
    image = grays[record.instance % len(grays)] * (0.35 + 0.65 * lit)
    return _noisy(np.repeat(image[..., None], 3, axis=2), 0.005, random)


def _noisy(image: Array, deviation: float, random: np.random.Generator) -> Array:
    noisy = image + random.normal(0, deviation, image.shape)
    return (255 * np.clip(noisy, 0, 1)).round().astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Shift:
    """Difference of the domains: a change of each; None = the rooms as they are rendered."""

    source: Change | None
    target: Change | None


SHIFTS = {
    "camera": Shift(None, camera),
    "negative": Shift(None, negative),
    "flat": Shift(flat, None),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A way of going on from the networks that were trained on the source."""

    words: str
    overrides: tuple[str, ...]


def _adversary(weight: float, *overrides: str) -> tuple[str, ...]:
    return (f"loss.adversarial_weight={weight:g}", *overrides)


NONE = "model.discriminator_norm=none"
JOINT = "model.passes=joint"
VARIANTS = {
    "control": Variant("weight 0: the adversary's control", _adversary(0)),
    "authors": Variant("as the authors have it, weight 0.1", _adversary(0.1)),
    "authors_1": Variant("as the authors have it, weight 1", _adversary(1)),
    "joint_norm": Variant("D's batch norm over both domains, 1", _adversary(1, "model.discriminator_norm=joint")),
    "no_norm": Variant("D without norm, 1", _adversary(1, NONE)),
    "instance": Variant("D with instance norm, 1", _adversary(1, "model.discriminator_norm=instance")),
    "spectral": Variant("D with spectral norm, 1", _adversary(1, "model.discriminator_norm=spectral")),
    "warm_up": Variant(
        "D without norm, 1, reached over 150 steps", _adversary(1, NONE, "loss.adversarial_warmup_steps=150")
    ),
    "joint_passes": Variant("one pass of B over both domains, D without norm, 0.3", _adversary(0.3, NONE, JOINT)),
    "both": Variant(
        "one pass, D without norm, both domains pushed, 0.3", _adversary(0.3, NONE, JOINT, "loss.pushed=both")
    ),
    "conv1": Variant("D without norm, 1, on conv1", _adversary(1, NONE, "model.adapted_layer=conv1")),
    "conv3": Variant("D without norm, 1, on conv3", _adversary(1, NONE, "model.adapted_layer=conv3")),
    "fc6": Variant("D without norm, 1, on fc6", _adversary(1, NONE, "model.adapted_layer=fc6")),
}
"""Beside `source` and `target`, which are trained on one domain's labels."""
FIRST = {"source": "labels of the source alone", "target": "labels of the target"}


@dataclass(frozen=True, slots=True)
class Study:
    """Settings and folders that all cells share."""

    work: Path
    steps: int
    adapt: int
    threads: int

    def shards(self, shift: str, part: str) -> Path:
        return self.work / "shards" / shift / part

    def run(self, shift: str, name: str, seed: int) -> Path:
        return self.work / "runs" / shift / f"{name}_{seed}"

    def cell(self, shift: str, name: str, seed: int) -> Path:
        return self.work / "cells" / shift / f"{name}_{seed}.json"


def prepare(study: Study, rooms: int, shifts: Sequence[str], workers: int) -> None:
    """Render the rooms and pack the parts of every shift; what is there already is kept."""
    source, keys = rendered(study.work / "rooms", rooms, workers)
    ends = np.cumsum([round(rooms * fraction) for fraction in PARTS.values()])
    for shift in shifts:
        parts = dict(zip(PARTS, np.split(keys, ends), strict=False))
        change = SHIFTS[shift]
        packed: dict[str, Rooms] = {
            "source": Rooms(source, parts["source"].tolist(), change.source),
            "target": Rooms(source, parts["target"].tolist(), change.target),
            "photos": Photos(source, parts["target"].tolist(), change.target),
            "test": Rooms(source, parts["test"].tolist(), change.target),
        }
        for name, images in packed.items():
            pack_once(images, study.shards(shift, name))


def train(study: Study, shift: str, name: str, seed: int) -> Path:
    """The run of a cell, trained if it is not yet."""
    run = study.run(shift, name, seed)
    labels = study.shards(shift, "target" if name == "target" else "source")
    common = [f"data.synthetic={labels}", f"train.seed={seed}"]
    if name in FIRST:
        common += ["model.adapted_layer=none", f"train.steps={study.steps}", "optim.lr=3e-3", "optim.warmup_steps=20"]
    else:
        common += [f"data.real={study.shards(shift, 'photos')}", f"train.steps={study.adapt}", "optim.lr=1e-3"]
        common += [f"train.init_from={study.run(shift, 'source', seed)}", *VARIANTS[name].overrides]
    return train_once([*common, "optim.schedule=cosine"], run, study.threads)


def measure(study: Study, shift: str, name: str, seed: int) -> dict[str, Any]:
    """A cell's figures."""
    torch.set_num_threads(study.threads)
    run, test = train(study, shift, name, seed), study.shards(shift, "test")
    section = evaluate(Tasks(synthetic=test), run).section()
    columns = {"running": "trained", "reestimated": "trained_reestimated"}
    figures: dict[str, Any] = {
        words: {"depth": section["depth"]["rmse"][column], "normal": section["normal"]["mean"][column]}
        for words, column in columns.items()
    }
    for words, correlations in beyond_average(run, test).items():
        figures[words]["beyond"] = correlations
    figures["pairs_per_s"] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["throughput"]
    losses = [line["loss/discriminator"] for line in read_metrics(run) if "loss/discriminator" in line]
    figures["discriminator_loss"] = statistics.mean(losses[-5:]) if losses else None
    return figures


def beyond_average(run: Path, test: Path) -> dict[str, dict[str, float]]:
    """Correlation of (prediction - average) with (truth - average) over the known pixels of held-out rooms.

    The average is that of the training labels at each pixel. A network that only predicts it has no correlation.
    """
    subject = run_subject(run)
    average = pixel_averages(subject.training_domain("synthetic", PLANES))
    images = subject.domain("synthetic", test, PLANES)
    again = subject.reestimated(images)
    assert again is not None  # the backbone has batch norms
    return {words: correlations(one, images, average) for words, one in (("running", subject), ("reestimated", again))}


def pixel_averages(training: Domain) -> dict[str, Array]:
    """Depth and normals of the average room, (C, S, S)."""
    sums: dict[str, Array] = {}
    known: Array = np.zeros(())
    with every_sample(training) as batches:
        for batch in batches:
            valid = batch.valid.numpy()
            for task in ("depth", "normal"):
                sums[task] = sums.get(task, 0) + (batch.targets[task].numpy() * valid).sum(0)
            known = known + valid.sum(0)
    return {task: total / np.maximum(known, 1) for task, total in sums.items()}


@torch.no_grad()
def correlations(subject: Subject, images: Domain, average: Mapping[str, Array]) -> dict[str, float]:
    """Correlations by task, over all pixels and channels at once."""
    assert subject.predict is not None
    pairs: dict[str, list[Array]] = {task: [] for task in average}
    with every_sample(subject.sees(images)) as batches:
        for batch in batches:
            predicted, valid = subject.predict(batch.image), batch.valid.numpy()
            for task, mean in average.items():
                both = np.stack([predicted[task].numpy() - mean, batch.targets[task].numpy() - mean])
                pairs[task].append(both[:, np.broadcast_to(valid, both.shape[1:])])
    return {task: float(np.corrcoef(np.concatenate(found, axis=1))[0, 1]) for task, found in pairs.items()}


def cells(shifts: Sequence[str], seeds: int, names: Sequence[str]) -> list[list[tuple[str, str, int]]]:
    """All cells, in two rounds: what is trained on one domain's labels, and what goes on from there."""
    first = [(shift, name, seed) for seed in range(seeds) for shift in shifts for name in FIRST]
    second = [(shift, name, seed) for seed in range(seeds) for shift in shifts for name in names]
    return [first, second]


def table(results: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]) -> str:
    """A table a shift: means, and half the range over the seeds."""
    lines = []
    for shift, rows in results.items():
        lines += [f"\n{shift}\n", "| | seeds | running statistics | re-estimated | gap closed | beyond the average |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, seeds in rows.items():
            words = FIRST.get(name) or VARIANTS[name].words
            cells = [_errors(seeds, statistics_) for statistics_ in ("running", "reestimated")]
            closed = " ".join(_closed(rows, name, task) for task in ("depth", "normal"))
            beyond = " / ".join(
                spread([one["reestimated"]["beyond"][task] for one in seeds.values()], 3)
                for task in ("depth", "normal")
            )
            lines.append(f"| {words} | {len(seeds)} | {' | '.join(cells)} | {closed} | {beyond} |")
    return "\n".join(lines)


def _errors(seeds: Mapping[int, Mapping[str, Any]], which: str) -> str:
    depth, normal = ([one[which][task] for one in seeds.values()] for task in ("depth", "normal"))
    return f"{spread(depth, 3)} / {spread(normal, 1)}"


def _closed(rows: Mapping[str, Mapping[int, Mapping[str, Any]]], name: str, task: str) -> str:
    """Share of what the target's labels would gain, with the re-estimated statistics, over the seeds that all have.

    Where that is no more than seeds differ by, there is no gap to close.
    """
    if name in FIRST or not {"source", "target"} <= rows.keys():
        return ""
    shared = rows[name].keys() & rows["source"].keys() & rows["target"].keys()
    gaps = [[rows[one][seed]["reestimated"][task] for one in ("source", name, "target")] for seed in sorted(shared)]
    if not gaps:
        return ""
    sources, _, targets = zip(*gaps, strict=True)
    if statistics.mean(sources) - statistics.mean(targets) <= (max(sources) - min(sources)) / 2:
        return "no gap"
    return f"{statistics.mean((source - own) / (source - target) for source, own, target in gaps):+.0%}"


def figure(results: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]], path: Path) -> None:
    """Errors on the target with re-estimated statistics: a mark a seed, a column a variant, a row a shift."""
    tasks = {"depth": "depth RMSE (m)", "normal": "normal error (degrees)"}
    sheet, axes = plt.subplots(len(results), 2, figsize=(10, 3.2 * len(results)), squeeze=False, sharex="col")
    for line, (shift, rows) in zip(axes, results.items(), strict=True):
        for axis, (task, words) in zip(line, tasks.items(), strict=True):
            for place, seeds in enumerate(rows.values()):
                errors = [one["reestimated"][task] for one in seeds.values()]
                axis.plot([place] * len(errors), errors, "o", color="#33658a", alpha=0.6)
                axis.plot([place - 0.3, place + 0.3], [statistics.mean(errors)] * 2, color="#33658a")
            for name in FIRST.keys() & rows.keys():
                mean = statistics.mean(one["reestimated"][task] for one in rows[name].values())
                axis.axhline(mean, color="#999999", linewidth=0.8, linestyle=":")
            axis.set_title(f"{shift}: {words}", fontsize=9)
            axis.set_xticks(range(len(rows)), list(rows), rotation=60, ha="right", fontsize=8)
    sheet.tight_layout()
    sheet.savefig(path, dpi=110)


def main() -> None:
    arguments = parsed()
    study = Study(arguments.work, arguments.steps, arguments.adapt, threads_of(arguments.jobs))
    prepare(study, arguments.rooms, arguments.only, os.cpu_count() or 1)
    results: dict[str, dict[str, dict[int, dict[str, Any]]]] = {shift: {} for shift in arguments.only}
    for round_ in cells(arguments.only, arguments.seeds, arguments.variants):
        todo = {study.cell(*cell): partial(measure, study, *cell) for cell in round_}
        for (shift, name, seed), found in zip(round_, measured_once(todo, arguments.jobs), strict=True):
            results[shift].setdefault(name, {})[seed] = found
    settings = {name: getattr(arguments, name) for name in ("rooms", "steps", "adapt", "seeds")}
    order = [*FIRST, *arguments.variants]
    results = {shift: {name: rows[name] for name in order if name in rows} for shift, rows in results.items()}
    path = write_result("domain_shift", {**settings, "size": SIZE, "results": results})
    figure(results, path.with_suffix(".png"))
    print(table(results))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=2500, help="half for the source, four tenths for the target")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="on the source, or on the target's labels")
    parser.add_argument("--adapt", type=int, default=300, help="steps of each variant after these")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, which share the processors")
    parser.add_argument("--only", type=names_of(SHIFTS), default=list(SHIFTS), help=f"of {','.join(SHIFTS)}")
    parser.add_argument("--variants", type=names_of(VARIANTS), default=list(VARIANTS), help=f"of {','.join(VARIANTS)}")
    parser.add_argument("--work", type=Path, default=Path("runs/domain_shift"), help="rooms, shards, runs and results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
