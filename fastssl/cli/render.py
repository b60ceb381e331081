"""`fastssl render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastssl.cli.options import Workers, path_of
from fastssl.telemetry import progress_bar


def render(
    out: Annotated[
        Path, typer.Argument(parser=path_of, help="Folder for the rooms; rooms that are complete there are kept.")
    ],
    count: Annotated[int, typer.Option(help="Number of rooms.", min=1)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rooms.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of the square images in pixels.", min=16)] = 256,
    workers: Workers = 1,
) -> None:
    """Render procedural rooms with depth, normals and instances."""
    from fastssl.render import render_rooms

    with progress_bar("rendering") as advance:
        render_rooms(out, count=count, seed=seed, size=size, workers=workers, progress=advance)
