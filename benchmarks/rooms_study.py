"""Rooms, runs on them, and results that are kept and measured once, for studies of rendered rooms."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Record
from fastssl.files import complete_or_absent
from fastssl.methods import load_config
from fastssl.render import render_rooms
from fastssl.shards import DomainName, PassedOver, pack
from fastssl.sources import RenderSource
from fastssl.train import complete_run

RENDERED, PACKED, SIZE = 128, 112, 99
"""Sides in pixels: of the rendered rooms, of the packed ones, and of the network's input."""
SEED = 11
"""Seed of the rooms."""

Array = NDArray[Any]
Change = Callable[[Record, np.random.Generator], Array]
"""Another image, (H, W, 3) uint8, of what a record shows."""


class Rooms:
    """Some rooms of a rendered folder, of which another image may be packed."""

    layout: ClassVar[str] = RenderSource.layout
    domain: ClassVar[DomainName] = RenderSource.domain
    labelled: ClassVar[bool] = True

    def __init__(self, rooms: RenderSource, keys: Sequence[str], change: Change | None = None) -> None:
        self.path, self.subset, self.licence = rooms.path, None, rooms.licence
        self._rooms, self._keys, self._change = rooms, keys, change

    def references(self) -> Iterator[str]:
        return iter(self._keys)

    def key(self, reference: str) -> str:
        return reference

    def read(self, reference: str) -> Record:
        record = self._rooms.read(reference)
        if self._change is None:
            return record
        random = np.random.default_rng(list(reference.encode()))
        return replace(record, image=self._change(record, random))

    def passed_over(self) -> dict[str, PassedOver]:
        return {}


class Photos(Rooms):
    """The same without their labels, as the domain that is to be adapted to."""

    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = False

    def read(self, reference: str) -> Record:
        seen = super().read(reference)
        return Record(key=seen.key, image=seen.image)


def rendered(folder: Path, count: int, workers: int) -> tuple[RenderSource, list[str]]:
    """The first rooms, rendered where they are not there yet, and their keys."""
    render_rooms(folder, count=count, seed=SEED, size=RENDERED, workers=workers)
    source = RenderSource(folder)
    return source, list(source.references())[:count]


def pack_once(rooms: Rooms, out: Path) -> None:
    """Pack rooms, unless that was done before."""
    if not (out / "manifest.json").exists():
        pack(rooms, out, size=PACKED, samples_per_shard=256, max_bad=0)


def train_once(overrides: Sequence[str], run: Path, threads: int) -> Path:
    """A run of the preset `tiny` with these settings, trained as far as it is not yet."""
    common = [f"data.size={SIZE}", f"train.threads={threads}"]
    common += ["train.picture_every=1000000", "train.checkpoint_every=1000000"]
    complete_run(load_config("tiny", overrides=[*common, *overrides]), run, lambda done, total=None, words="": None)
    return run


def measured_once(cells: Mapping[Path, Callable[[], dict[str, Any]]], jobs: int) -> list[dict[str, Any]]:
    """The figures of all cells, in their order; of a cell whose file is not there yet they are measured and kept in it.

    Args:
        cells: how each cell is measured, by its file; picklable.
        jobs: processes, which measure a cell each at a time.
    """
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_measured, path, measure): path for path, measure in cells.items()}
        for future in as_completed(futures):
            print(f"{futures[future]}: {json.dumps(future.result())}", flush=True)
    return [json.loads(path.read_text(encoding="utf-8")) for path in cells]


def _measured(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    figures = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(path) as file:
        file.write(json.dumps(figures, indent=1).encode())
    return figures


def threads_of(jobs: int) -> int:
    """Threads of a job among others."""
    return max((os.cpu_count() or 1) // jobs, 1)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and half the range."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def names_of(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """An argument's type: some of these names, separated by commas."""

    def names(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        unknown = set(found) - set(known)
        if unknown or not found:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, separated by commas")
        return found

    return names
