"""`fastssl train`."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
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
        Path | None,
        typer.Option(
            parser=path_of, metavar="PATH", help="Run folder: new or empty, or with --resume the run to continue."
        ),
    ] = None,
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
    replay: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="FILE", help="A run's failed_step_....json: make that step again."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Leave a trace of steps 10 to 15 in the run, which Perfetto opens.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what the training would take; nothing is written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run and --replay: JSON on stdout.")] = False,
) -> None:
    """Learn features by a method."""
    _heed_signals()
    given = {"--config": config, "--amp": amp, "--preset": preset, "--method": method}
    _check_options(given, out, resume=resume, replay=replay, dry_run=dry_run, profile=profile, as_json=as_json)
    datasets = {
        "synthetic": synthetic,
        "real": real,
        "validation_synthetic": validation_synthetic,
        "validation_real": validation_real,
    }
    settings = _training_settings(datasets, amp=amp, paranoid=paranoid)
    changes = overrides or ()
    _check_given_once(changes, settings)
    if replay is not None:
        if out is not None or overrides or any([*given.values(), *settings.values()]):
            raise UsageError("a step is made again as it was", hint="give --replay FILE alone, or with --json")
        _replay(replay, as_json=as_json)
        return
    assert out is not None
    from fastssl.methods import load_config
    from fastssl.ranks import begun
    from fastssl.train.launch import check_gpus, launch

    new = None
    if not resume:
        new = load_config(preset, method=method, file=config, overrides=changes, settings=settings)
    place = begun()
    leads = place is None or place.leads
    if dry_run:
        if place is None:
            check_gpus(gpus)
        if leads:
            _tell_estimate(new, out, gpus if place is None else place.world_size, as_json=as_json)
        return
    if gpus > 1 and place is None:
        raise typer.Exit(launch(gpus, sys.argv[1:]))
    if not leads:
        logging.getLogger("fastssl").setLevel(logging.WARNING)
    _train(new, out, changes, settings, profile=profile, leads=leads)
    if leads:
        say(f"the run is in {one_line(str(out))}")


def _heed_signals() -> None:
    """End in good order on a signal that comes while libraries are loaded; a training heeds them by itself."""

    def end(number: int, _: object) -> None:
        say(f"stopped by {signal.Signals(number).name}, when nothing was being trained")
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def _train(
    new: Any, out: Path, changes: Sequence[str], settings: dict[str, dict[str, Any]], *, profile: bool, leads: bool
) -> None:
    """Begin a run with these settings, or where there are none continue one."""
    from fastssl.train import Stopped, resume_run, start_run

    try:
        with progress_bar("training", patience_s=0) if leads else nullcontext(_unheard) as advance:
            if new is None:
                resume_run(out, advance, overrides=changes, settings=settings, profile=profile)
            else:
                start_run(new, out, advance, profile=profile)
    except Stopped as stopped:
        if leads:
            say(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
    except PeerLostError as lost:
        # The rank that failed ends first, so that whoever began them sees its exit code and not this one's. Who is
        # left to go on did not hear of it, so it has not been told.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_BEHIND_S)
        lost.is_told = False
        raise


def _check_options(
    settings: Mapping[str, object],
    out: Path | None,
    *,
    resume: bool,
    replay: Path | None,
    dry_run: bool,
    profile: bool,
    as_json: bool,
) -> None:
    if out is None and replay is None:
        raise UsageError("the run folder is not given", where="--out", hint="add --out FOLDER")
    if resume and any(settings.values()):
        what = "a run is continued with its own method, preset and precision"
        raise UsageError(what, hint="give --out and --resume; --set, --synthetic and --real may stand beside them")
    asked = {"--resume": resume, "--replay": replay is not None, "--dry-run": dry_run}
    if sum(asked.values()) > 1 or (profile and not resume and any(asked.values())):
        names = [*(name for name, is_asked in asked.items() if is_asked), *(["--profile"] if profile else [])]
        raise UsageError("these options ask for different things", seen=" and ".join(names), hint="give one of them")
    if as_json and not (dry_run or replay is not None):
        raise UsageError(
            "--json is for --dry-run and --replay", hint="a training writes metrics.jsonl and summary.json"
        )


def _check_given_once(changes: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a setting that both an option and `--set` give; which of them counts is nothing to guess."""
    for change in changes:
        section, _, name = change.partition("=")[0].strip().partition(".")
        if name in settings.get(section, {}):
            option = f"--{name.replace('_', '-')}"
            raise UsageError("a setting is given twice", seen=f"--set {change}, and {option}", hint="give one of them")


def _replay(path: Path, *, as_json: bool) -> None:
    from fastssl.train.replay import as_text, check_reproduced, replay

    with progress_bar("replaying") as advance:
        told = replay(path, advance)
    print_json(told) if as_json else print_data(as_text(told))
    check_reproduced(told, path)


def _tell_estimate(config: Any, out: Path, world_size: int, *, as_json: bool) -> None:
    from fastssl.train import dry_run
    from fastssl.train.estimate import as_text

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
