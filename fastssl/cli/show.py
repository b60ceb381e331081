"""`fastssl show`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastssl.cli.options import AsJson, Dataset, path_of
from fastssl.cli.output import print_data, print_json, say
from fastssl.errors import one_line
from fastssl.telemetry import progress_bar


def show(
    data: Dataset,
    out: Annotated[Path, typer.Option(parser=path_of, metavar="PATH", help="PNG file; histograms beside it.")] = Path(
        "sheet.png"
    ),
    count: Annotated[int, typer.Option(help="Samples on the sheet.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="The same seed shows the same samples.", min=0)] = 0,
    key: Annotated[str | None, typer.Option(help="Show this sample alone, large.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a contact sheet of a packed dataset with every plane, and histograms; or one sample."""
    from fastssl.show import show as draw

    with progress_bar("reading", unit="samples") as advance:
        shown = draw(data, out, count=count, seed=seed, key=key, progress=advance)
    if as_json:
        print_json({"pictures": [str(path) for path in shown.pictures], "samples": [asdict(s) for s in shown.samples]})
    elif key is not None:
        print_data("".join(f"{line}\n" for line in [key, *shown.samples[0].lines()]))
    say(f"drawn: {one_line(', '.join(str(path) for path in shown.pictures))}")
