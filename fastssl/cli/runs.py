"""`fastssl runs`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastssl.cli.options import AsJson, path_of
from fastssl.cli.output import print_data, print_json, say
from fastssl.errors import one_line

if TYPE_CHECKING:
    from fastssl.runs import RunState


def runs(
    folder: Annotated[Path, typer.Argument(parser=path_of, metavar="[DIR]", help="Where to look for runs.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """The runs below a folder, one line each: how they stand, steps, rate and losses."""
    from fastssl.runs import find_runs

    found = list(find_runs(folder))
    if as_json:
        print_json([asdict(run) for run in found])
        return
    widths = [max(map(len, column)) for column in zip(*map(_cells, found), strict=True)]
    for run in found:
        cells = _cells(run)
        first = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells[:3], widths[:3], strict=True))
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells[3:], widths[3:], strict=True))
        losses = " ".join(f"{name} {value:.3f}" for name, value in run.losses.items())
        print_data(f"{first}  {numbers}  {one_line(run.why) or losses}".rstrip() + "\n")
    if not found:
        say(f"there is no run below {one_line(str(folder))}")


def _cells(run: RunState) -> tuple[str, ...]:
    rate = "" if run.rate is None else f"{run.rate:.0f}/s"
    return one_line(run.path), run.state, run.method, f"{run.steps:,}", rate
