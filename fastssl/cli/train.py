"""`fastssl train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fastssl.cli.options import path_of
from fastssl.cli.output import say
from fastssl.config import dataset_weights
from fastssl.errors import UsageError, one_line
from fastssl.telemetry import progress_bar


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
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
) -> None:
    """Learn features by a method."""
    given = [synthetic, real, config, overrides, amp, paranoid, preset, method]
    if resume and any(given):
        raise UsageError("--resume continues a run with its own settings", hint="give --out and --resume alone")
    settings = _training_settings(synthetic, real, amp=amp, paranoid=paranoid)
    from fastssl.methods import load_config
    from fastssl.train import resume_run, start_run

    resolved = load_config(preset or "paper", method=method, file=config, overrides=overrides or (), settings=settings)

    with progress_bar("training", patience_s=0) as advance:
        if resume:
            resume_run(out, advance)
        else:
            start_run(resolved, out, advance)
    say(f"the run is in {one_line(str(out))}")


def _training_settings(
    synthetic: list[str] | None, real: list[str] | None, *, amp: bool, paranoid: bool
) -> dict[str, dict[str, Any]]:
    """Settings that the options of `train` stand for, by section; nothing for those that are not given."""
    named = {"synthetic": synthetic, "real": real}
    data: dict[str, Any] = {name: dataset_weights(paths) for name, paths in named.items() if paths}
    return {"data": data | ({"paranoid": True} if paranoid else {}), "train": {"amp": True} if amp else {}}
