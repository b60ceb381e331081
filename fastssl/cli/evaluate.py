"""`fastssl eval`: a command for each evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from fastssl.cli.options import AsJson, home, path_of
from fastssl.cli.output import print_data, print_json
from fastssl.errors import UsageError

if TYPE_CHECKING:
    from fastssl.evaluate import Evaluation


Beside = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=RUN", help="Another to measure beside it, or init:gaussian; may be repeated."),
]
Measurable = Annotated[
    Path,
    typer.Argument(
        parser=path_of,
        metavar="RUN",
        help="Run folder, or one of its checkpoints; a .safetensors file of `fastssl export`; or torchvision:NAME or "
        "timm:NAME, with =FILE for a state dict.",
    ),
]


class Evaluations(TyperGroup):
    """The commands of `eval`, one for each evaluation; only there it is worth the time to load them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict(self._commands())  # among these a name that is not known is looked for
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._commands().get(cmd_name)

    @cache  # noqa: B019 - there is one group
    def _commands(self) -> Mapping[str, Any]:
        from fastssl.evaluate import EVALUATIONS

        commands = typer.Typer()
        for name, evaluation in EVALUATIONS.items():
            commands.command(name, help=inspect.getdoc(evaluation))(_evaluation_command(evaluation))
        return typer.main.get_group(commands).commands


def _evaluation_command(evaluation: type[Evaluation]) -> Callable[..., None]:
    """The command of an evaluation: a run, an option for each of its fields, and what all evaluations have."""
    from fastssl.evaluate import evaluate, table

    def command(run: Path, *, beside: list[str] | None, as_json: bool, **fields: Any) -> None:
        measured = evaluate(evaluation(**fields), run, _named_runs(beside or []))
        print_json(measured.section()) if as_json else print_data(table(measured.rows))

    hints = get_type_hints(evaluation, include_extras=True)
    own = [_option(field.name, hints[field.name], field.default) for field in fields(cast(Any, evaluation))]
    first, *common = inspect.signature(_common_options, eval_str=True).parameters.values()
    # Typer reads it; mypy knows no such attribute of a function.
    command.__signature__ = inspect.Signature([first, *own, *common])  # type: ignore[attr-defined]
    return command


def _common_options(run: Measurable, *, beside: Beside = None, as_json: AsJson = False) -> None:
    """The signature that the commands of all evaluations have."""


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    """An option for a field; one of a dataset takes a folder or an address, one of a path ``~`` and ``file://``."""
    from fastssl.evaluate import Dataset

    kind, words = get_args(annotation)
    if kind in (Dataset, Dataset | None):
        annotated: Any = Annotated[str if kind is Dataset else str | None, typer.Option(parser=home, help=words)]
    elif kind is Path:
        annotated = Annotated[Path, typer.Option(parser=path_of, help=words)]
    else:
        annotated = Annotated[kind, typer.Option(help=words)]
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


def _named_runs(texts: Sequence[str]) -> dict[str, Path]:
    """The runs of `--beside`, each as NAME=RUN."""
    runs = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in runs:
            raise UsageError("a run cannot be read", where="--beside", seen=text, expected="NAME=RUN, each name once")
        runs[name] = path_of(path)
    return runs
