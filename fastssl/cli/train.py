"""`fastssl train`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fastssl.cli.options import path_of
from fastssl.cli.output import print_data, print_json, say
from fastssl.config import dataset_weights
from fastssl.errors import PeerLostError, UsageError, one_line
from fastssl.telemetry import progress_bar

log = logging.getLogger(__name__)

_BEHIND_S = 5
"""For a rank that ends because another one has."""


class NamesMethods(TyperCommand):
    """`train`, whose help names the methods; only there it is worth the time to load them."""

    def format_help(self, *arguments: Any) -> None:
        from fastssl.methods import METHODS

        presets = [f"{name} ({', '.join(method.presets)})" for name, method in METHODS.items()]
        self.epilog = f"Methods, and their presets: {'; '.join(presets)}."
        super().format_help(*arguments)


def train(
    out: Annotated[
        Path,
        typer.Option(
            parser=path_of, metavar="PATH", help="Run folder: new or empty, or with --resume the run to continue."
        ),
    ],
    synthetic: Annotated[list[str] | None, typer.Option(help="Packed rendered images; PATH or PATH=WEIGHT.")] = None,
    real: Annotated[list[str] | None, typer.Option(help="Packed photos; repeat either for several datasets.")] = None,
    validation_synthetic: Annotated[
        list[str] | None, typer.Option(help="Held-out rendered images, measured during training; may be repeated.")
    ] = None,
    validation_real: Annotated[list[str] | None, typer.Option(help="Held-out photos, the same.")] = None,
    method: Annotated[
        str | None, typer.Option(help="How features are learnt: cross_domain if not given; the names stand below.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings that belong together: paper if not given, tiny, and others.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="PATH", help="YAML file with settings that differ from the preset."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision.")] = False,
    paranoid: Annotated[bool, typer.Option("--paranoid", help="Check all that is read against its checksum.")] = False,
    gpus: Annotated[
        int, typer.Option(help="Ranks on this machine, each with a GPU of its own; without GPUs, on its cores.", min=1)
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its newest sound checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what the training would take; nothing is written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON on stdout.")] = False,
) -> None:
    """Learn features by a method."""
    _check_options(resume=resume, dry_run=dry_run, as_json=as_json)
    if resume and any([config, amp, preset, method]):
        what = "a run is continued with its own method, preset and precision"
        raise UsageError(what, hint="give --out and --resume; --set and the options of datasets may stand beside them")
    datasets = {
        "synthetic": synthetic,
        "real": real,
        "validation_synthetic": validation_synthetic,
        "validation_real": validation_real,
    }
    settings = _training_settings(datasets, amp=amp, paranoid=paranoid)
    from fastssl.methods import load_config
    from fastssl.ranks import begun
    from fastssl.train import Stopped, resume_run, start_run
    from fastssl.train.launch import launch

    changes = overrides or ()
    new = None
    if not resume:
        new = load_config(preset or "paper", method=method, file=config, overrides=changes, settings=settings)
    place = begun()
    if dry_run and (place is None or place.leads):
        _tell_estimate(new, out, gpus if place is None else place.world_size, as_json=as_json)
    if dry_run:
        return
    if gpus > 1 and place is None:
        raise typer.Exit(launch(gpus, sys.argv[1:]))
    leads = place is None or place.leads
    if not leads:
        logging.getLogger("fastssl").setLevel(logging.WARNING)
    try:
        with progress_bar("training", patience_s=0) if leads else nullcontext(_unheard) as advance:
            if new is None:
                resume_run(out, advance, overrides=changes, settings=settings)
            else:
                start_run(new, out, advance)
    except Stopped as stopped:
        if leads:
            say(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
    except PeerLostError:
        # The rank that failed ends first, so that whoever began them sees its exit code and not this one's.
        time.sleep(_BEHIND_S)
        raise
    if leads:
        say(f"the run is in {one_line(str(out))}")


def _check_options(*, resume: bool, dry_run: bool, as_json: bool) -> None:
    if dry_run and resume:
        raise UsageError("--dry-run tells of a new training, and --resume continues one", hint="leave one of them out")
    if as_json and not dry_run:
        raise UsageError("--json is for --dry-run", hint="a training writes metrics.jsonl and summary.json")


def _tell_estimate(config: Any, out: Path, world_size: int, *, as_json: bool) -> None:
    from fastssl.train import as_text, dry_run

    told = dry_run(config, out, world_size=world_size)
    if told["refused"] is not None:
        log.warning("a training would be refused: %s", told["refused"])
    print_json(told) if as_json else print_data(as_text(told))


def _unheard(done: int, total: int | None = None, words: str = "") -> None:
    """The progress of a rank that does not lead."""


def _training_settings(
    datasets: Mapping[str, list[str] | None], *, amp: bool, paranoid: bool
) -> dict[str, dict[str, Any]]:
    """Settings that the options of `train` stand for, by section; nothing for those that are not given."""
    data: dict[str, Any] = {name: dataset_weights(paths) for name, paths in datasets.items() if paths}
    return {"data": data | ({"paranoid": True} if paranoid else {}), "train": {"amp": True} if amp else {}}
