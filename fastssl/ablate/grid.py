"""All cells of a grid, made side by side; what is done is kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from fastssl.ablate.cells import Cell, Outcome, check_cell, has_report, is_done, make_cell, read_record
from fastssl.ablate.recipe import Recipe
from fastssl.files import alone_in
from fastssl.shards.workers import in_order

State = Literal["finished", "begun", "missing"]


def check_unchanged(recipe: Recipe, out: Path) -> None:
    """Refuse cells of an earlier call whose settings were others.

    Raises:
        UsageError, DataError: as `fastssl.ablate.cells.check_cell`.
    """
    for cell in recipe.cells:
        check_cell(cell, out)


def state_of(cell: Cell, out: Path) -> State:
    """How a cell stands, by what is in its folder."""
    if is_done(cell, out):
        return "finished"
    return "missing" if read_record(cell.folder(out)) is None else "begun"


def make_grid(recipe: Recipe, out: Path, *, jobs: int = 1, ray: str | None = None) -> Iterator[tuple[Cell, Outcome]]:
    """Make the cells that are not finished, and yield each as it comes out, in their order.

    Args:
        recipe: the grid.
        out: its folder; with `ray` one that all machines see under this path.
        jobs: processes of this machine, which share its cores.
        ray: address of a Ray cluster that does the work instead, a cell on each of its CPUs.

    Raises:
        UsageError: a cell was begun with other settings, or another process makes this grid.
        Stopped: a signal asked for it; the same again goes on.
        DeviceError: a process was lost; the same again goes on.
    """
    with alone_in(out, "ablation"):
        check_unchanged(recipe, out)
        left = [cell for cell in recipe.cells if not (is_done(cell, out) and has_report(cell, out))]
        threads = 1 if ray is not None else max(1, torch.get_num_threads() // jobs)
        outcomes = in_order(partial(make_cell, out, threads), left, workers=jobs, ray=ray)
        yield from zip(left, outcomes, strict=True)
