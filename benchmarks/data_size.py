"""Errors on held-out rooms after training on 100, 300, 1,000 and 3,000 others: how much more of them help.

    python benchmarks/data_size.py [--sizes 100,300,1000,3000] [--seeds 3] [--steps 2000] [--jobs 2] [--work DIR]

The miniature of the paper's rows of 0.5 and 1.5 million images. All networks (`tiny`, 99 pixels, tasks alone) make the
same number of steps, so more rooms are seen less often each; the last 300 rooms are held out.
Rooms are rendered once, and every result is kept in DIR, so that a study that is killed goes on where it stood. Results
go to `results/data_size.json`, and a figure beside it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conditions import write_result
from matplotlib import pyplot as plt
from rooms_study import SIZE, Rooms, measured_once, pack_once, rendered, spread, threads_of, train_once

from fastssl.evaluate import Tasks, evaluate

HELD_OUT = 300
METRICS = {
    "depth": ("depth RMSE (m)", 3),
    "normal": ("normal error (degrees)", 1),
    "contour": ("contour F", 3),
}
"""Metrics by name: words, and digits of a table."""

Figures = Mapping[int, Mapping[int, Mapping[str, Any]]]
"""Figures of each seed, by number of rooms."""


def measure(work: Path, size: int, seed: int, steps: int, threads: int) -> dict[str, float]:
    """A network's errors on held-out rooms, those of the best constant, and those on rooms that it learnt from."""
    torch.set_num_threads(threads)
    labels = work / "shards" / str(size)
    settings = [f"data.synthetic={labels}", f"train.seed={seed}", f"train.steps={steps}", "model.adapted_layer=none"]
    settings += ["optim.lr=3e-3", "optim.warmup_steps=20", "optim.schedule=cosine"]
    run = train_once(settings, work / "runs" / f"{size}_{seed}", threads)
    held_out, learnt = (_errors(run, data) for data in (work / "shards" / "held_out", work / "shards" / "learnt"))
    return {**held_out["trained"], **{f"{name}_learnt": value for name, value in learnt["trained"].items()}} | {
        f"{name}_constant": value for name, value in held_out["constant"].items()
    }


def _errors(run: Path, data: Path) -> dict[str, dict[str, float]]:
    section = evaluate(Tasks(synthetic=data), run).section()
    metrics = {"depth": section["depth"]["rmse"], "normal": section["normal"]["mean"], "contour": section["edge"]["f"]}
    return {column: {name: metrics[name][column] for name in metrics} for column in ("trained", "constant")}


def prepare(work: Path, sizes: list[int], workers: int) -> None:
    """Render and pack the rooms; what is there already is kept. `learnt` holds rooms that every network learnt from."""
    count = max(sizes) + HELD_OUT
    source, keys = rendered(work / "rooms", count, workers)
    parts = {"held_out": keys[-HELD_OUT:], "learnt": keys[: min(sizes)]} | {str(size): keys[:size] for size in sizes}
    for name, chosen in parts.items():
        pack_once(Rooms(source, chosen), work / "shards" / name)


def table(results: Figures) -> str:
    """A row for each number of rooms: means, and half the range over the seeds."""
    lines = ["| rooms | " + " | ".join(words for words, _ in METRICS.values()) + " |", "|---" * 4 + "|"]
    for size, seeds in results.items():
        cells = [spread([one[name] for one in seeds.values()], digits) for name, (_, digits) in METRICS.items()]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results: Figures, path: Path) -> None:
    """A mark a seed, against the number of rooms; the rooms that were learnt from beside the held-out ones."""
    sheet, axes = plt.subplots(1, len(METRICS), figsize=(11, 3.4))
    for axis, (name, (words, _)) in zip(axes, METRICS.items(), strict=True):
        for suffix, colour, label in (("", "#33658a", "held out"), ("_learnt", "#bbbbbb", "learnt from")):
            means = [sum(one[name + suffix] for one in seeds.values()) / len(seeds) for seeds in results.values()]
            axis.plot(list(results), means, color=colour)
            marks = [(size, one[name + suffix]) for size, seeds in results.items() for one in seeds.values()]
            axis.plot(*zip(*marks, strict=True), "o", color=colour, alpha=0.6, label=label)
        constant = next(iter(next(iter(results.values())).values()))[f"{name}_constant"]
        axis.axhline(constant, color="#999999", linewidth=0.8, linestyle=":", label="best constant")
        axis.set_xscale("log")
        axis.set_xticks(list(results), [f"{size:,}" for size in results])
        axis.minorticks_off()
        axis.set_title(words, fontsize=10)
        axis.set_xlabel("rooms")
    axes[0].legend(fontsize=8, frameon=False)
    sheet.tight_layout()
    sheet.savefig(path, dpi=110)


def main() -> None:
    arguments = parsed()
    sizes, threads = sorted(arguments.sizes), threads_of(arguments.jobs)
    prepare(arguments.work, sizes, os.cpu_count() or 1)
    cells = [(size, seed) for seed in range(arguments.seeds) for size in sizes]
    todo = {
        arguments.work / "cells" / f"{size}_{seed}.json": partial(
            measure, arguments.work, size, seed, arguments.steps, threads
        )
        for size, seed in cells
    }
    results: dict[int, dict[int, dict[str, Any]]] = {size: {} for size in sizes}
    for (size, seed), found in zip(cells, measured_once(todo, arguments.jobs), strict=True):
        results[size][seed] = found
    path = write_result("data_size", {"steps": arguments.steps, "size": SIZE, "held_out": HELD_OUT, "results": results})
    figure(results, path.with_suffix(".png"))
    print(table(results))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_sizes, default=[100, 300, 1000, 3000], help="numbers of rooms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of every network")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, which share the processors")
    parser.add_argument("--work", type=Path, default=Path("runs/data_size"), help="rooms, shards, runs and results")
    return parser.parse_args()


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    main()
