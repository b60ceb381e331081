"""`fastssl bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastssl.cli.options import AsJson, Workers, path_of
from fastssl.cli.output import print_data, print_json
from fastssl.config import dataset_weights
from fastssl.errors import UsageError
from fastssl.telemetry import progress_bar

benchmarks = typer.Typer(no_args_is_help=True, help="Measure what limits this machine, in numbers and in words.")


@benchmarks.command("load")
def bench_load(
    synthetic: Annotated[list[str] | None, typer.Option(help="Packed rendered images; PATH or PATH=WEIGHT.")] = None,
    real: Annotated[list[str] | None, typer.Option(help="Packed photos; one of the two has to be given.")] = None,
    preset: Annotated[str, typer.Option(help="paper, released or tiny.")] = "paper",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(help="For all measurements together, about.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Loading: its parts one by one, the whole, other threads and prefetch; what limits, how far from the floor."""
    from fastssl.methods import load_config

    settings = load_config(preset, overrides=overrides or ())

    from fastssl.bench.load import measure_loading
    from fastssl.bench.verdict import judge, loading_table
    from fastssl.loader import open_mixture

    rendered, photos = (open_mixture(dataset_weights(paths)) if paths else None for paths in (synthetic, real))
    with progress_bar("measuring") as advance:
        measured = measure_loading(rendered, photos, settings, seconds=seconds, progress=advance)
    verdict = judge(measured)
    if as_json:
        print_json({**asdict(measured), "verdict": asdict(verdict)})
    else:
        print_data(loading_table(measured) + "\n" + "".join(f"{words}\n" for words in verdict.sentences))


@benchmarks.command("pack")
def bench_pack(
    source: Annotated[
        Path, typer.Argument(parser=path_of, help="Dataset of which some samples are packed, into a temporary folder.")
    ],
    layout: Annotated[str | None, typer.Option(help="How the dataset is laid out; found out where it can be.")] = None,
    size: Annotated[int, typer.Option(help="Side of the packed images in pixels.", min=16)] = 256,
    workers: Workers = 1,
    limit: Annotated[int, typer.Option(help="So many samples, from the first.", min=1)] = 256,
    as_json: AsJson = False,
) -> None:
    """Packing: the steps of a sample and the rate of all; what limits."""
    from fastssl.bench.pack import measure_packing, packing_table, packing_verdict
    from fastssl.sources import open_source

    opened = open_source(source, layout)
    with progress_bar("packing", unit="samples") as advance:
        measured = measure_packing(opened, size=size, workers=workers, limit=limit, progress=advance)
    verdict = packing_verdict(measured)
    if as_json:
        print_json({**asdict(measured), "limited_by": measured.limited_by, "verdict": verdict})
    else:
        print_data(packing_table(measured) + "\n" + "".join(f"{words}\n" for words in verdict))


@benchmarks.command("step")
def bench_step(
    method: Annotated[str | None, typer.Option(help="cross_domain if not given.")] = None,
    preset: Annotated[str, typer.Option(help="paper, released or tiny.")] = "paper",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images per step; not given: the preset's, and 8 on a CPU at most.", min=2)
    ] = None,
    rungs: Annotated[
        list[str] | None, typer.Option("--rung", help="One of the rungs, by name; may be repeated; not given: all.")
    ] = None,
    turns: Annotated[int, typer.Option(help="Of which the rates are medians.", min=1)] = 5,
    loss_steps: Annotated[int, typer.Option(help="Steps for the losses beside one another; 0 = none.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """The training step: what each of its parts gains, on a batch of random numbers that stays where it is."""
    from fastssl.methods import load_config

    settings = load_config(preset, method=method, overrides=overrides or ())

    from fastssl.bench.step import RUNGS, measure_steps, sized, step_table

    known = [rung.name for rung in RUNGS]
    for name in rungs or ():
        if name not in known:
            raise UsageError("there is no such rung", where="--rung", seen=name, expected=", ".join(known))
    with progress_bar("measuring") as advance:
        report = measure_steps(
            sized(settings, batch), names=rungs or (), loss_steps=loss_steps, turns=turns, progress=advance
        )
    if as_json:
        print_json(asdict(report))
    else:
        print_data(step_table(report))
