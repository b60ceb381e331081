"""The commands, one per file. They parse and compose; what a command does lives where its name says.

Data goes to stdout, words to stderr. Errors become exit codes as `fastssl.errors` lists them. Every import that costs
time is made inside the command that needs it, so that `fastssl --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from fastssl import __version__
from fastssl.cli import ablate, bench, evaluate, export, render, report, runs, shard, show, train, verify
from fastssl.cli.exit_codes import Commands
from fastssl.cli.output import print_data
from fastssl.errors import UsageError
from fastssl.telemetry import log_to_stderr

log = logging.getLogger("fastssl")

app = typer.Typer(
    name="fastssl",
    cls=Commands,
    help="Visual features without labels, from synthetic imagery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(render.render)
app.command()(shard.shard)
app.command(cls=train.NamesMethods)(train.train)
app.add_typer(
    typer.Typer(cls=evaluate.Evaluations, no_args_is_help=True, help="Measure a run on held-out shards."), name="eval"
)
app.command()(ablate.ablate)
app.command()(export.export)
app.command()(runs.runs)
app.command()(report.report)
app.command()(verify.verify)
app.command()(show.show)
app.add_typer(bench.benchmarks, name="bench")


def main() -> None:
    """Entry point of the `fastssl` command."""
    _open_standard_files()
    log_to_stderr()
    try:
        app()
    except OSError:  # stderr takes no words about how the command was used; all other errors were told before
        sys.exit(UsageError.exit_code)


def _open_standard_files() -> None:
    """Give a closed stdin, stdout or stderr a file, or the next one that is opened would take its place."""
    was_closed = sys.stdout is None
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    if was_closed:
        log.warning("stdout is closed: what the command prints is lost")


def _version(wanted: bool) -> None:
    if wanted:
        print_data(f"fastssl {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual features without labels, from synthetic imagery."""
