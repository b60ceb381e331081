"""`fastssl export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastssl.cli.options import AsJson, Subject, path_of
from fastssl.cli.output import print_json, say
from fastssl.errors import one_line


def export(
    run: Subject,
    out: Annotated[Path, typer.Argument(parser=path_of, metavar="OUT", help="The file; one of that name is replaced.")],
    name: Annotated[str, typer.Option("--format", help="safetensors, torchvision, timm or onnx.")] = "safetensors",
    layer: Annotated[
        str | None,
        typer.Option(help="The layer whose map is wanted: onnx ends there, and safetensors notes it."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="best, or the number of a step; not given: the newest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's backbone where others can load it; the file is loaded again and compared before it is there."""
    from fastssl.export.run import export_run

    done = export_run(run, out, name, layer=layer, checkpoint=checkpoint)
    if as_json:
        print_json(asdict(done))
    say(
        f"exported: {one_line(done.path)}, {done.backbone} of step {done.step:,} as {done.format}, "
        f"{done.num_bytes / 1e6:,.1f} MB, features differ by {done.difference:.1g} at most; it loads by "
        f"{one_line(done.usage)}"
    )
