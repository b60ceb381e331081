"""Arguments and options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fastssl.addresses import is_remote, local_path, masked


def path_of(text: str) -> Path:
    """The path of what is no dataset; only these may be in a store."""
    if is_remote(text):
        raise typer.BadParameter(f"it has to be on this machine, and {masked(text)} is an address of a store")
    return local_path(home(text))


def home(text: str) -> str:
    """A path with ``~`` expanded, which a shell leaves as it is in ``--out=~/run``.

    An empty one, as of a variable that is not set, would be the current folder.
    """
    if not text:
        raise typer.BadParameter("the path is empty; is a variable not set?")
    return os.path.expanduser(text)  # noqa: PTH111 - pathlib's raises for an unknown user


Workers = Annotated[int, typer.Option(help="Processes that work side by side.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
Dataset = Annotated[
    str, typer.Argument(parser=home, help="Packed dataset: a folder, or an address as s3://bucket/rooms.")
]
Subject = Annotated[
    Path,
    typer.Argument(
        parser=path_of, metavar="RUN", help="Run folder, or one of its checkpoints such as RUN/checkpoints/best.pt."
    ),
]
Run = Annotated[Path, typer.Argument(parser=path_of, help="Run folder, the --out of a training.")]
