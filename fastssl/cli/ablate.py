"""`fastssl ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastssl.cli.options import AsJson, path_of
from fastssl.cli.output import print_data, print_json, say
from fastssl.errors import one_line
from fastssl.telemetry import progress_bar

if TYPE_CHECKING:
    from fastssl.ablate import Recipe


def ablate(
    recipe: Annotated[Path, typer.Argument(parser=path_of, metavar="RECIPE", help="YAML file with rows and columns.")],
    out: Annotated[
        Path,
        typer.Option(parser=path_of, metavar="PATH", help="Folder of the grid; what is finished in it is kept."),
    ],
    jobs: Annotated[int, typer.Option(help="Cells at once, which share the cores.", min=1)] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster that does the work instead.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train and measure a grid, and print its table beside published figures.

    The same command goes on after an interruption.
    """
    from fastssl.ablate import as_text, check_unchanged, read_recipe, table_of
    from fastssl.ablate.table import as_json as table_as_json

    grid = read_recipe(recipe)
    if dry_run:
        check_unchanged(grid, out)
        _tell_cells(grid, out, as_json=as_json)
        return
    errors, exit_code = _made(grid, out.absolute(), jobs=jobs, ray=ray)
    table = table_of(grid, out, errors)
    print_json(table_as_json(table)) if as_json else print_data(as_text(table))
    say(f"the table is in {one_line(str(out))}, table.json and table.md")
    if exit_code:
        raise typer.Exit(exit_code)


def _made(grid: Recipe, out: Path, *, jobs: int, ray: str | None) -> tuple[dict[str, str], int]:
    """Make the cells; the errors of those that failed by name, each told once, and the exit code of the first."""
    from fastssl.ablate import make_grid, table_of, write_table
    from fastssl.train import Stopped

    errors, exit_code, total = dict[str, str](), 0, len(grid.cells)
    try:
        with progress_bar("cells", patience_s=0) as advance:
            for cell, outcome in make_grid(grid, out, jobs=jobs, ray=ray):
                if outcome.error:
                    if outcome.error not in errors.values():
                        say(f"error: {cell.name}: {outcome.error}")
                    errors[cell.name] = outcome.error
                    exit_code = exit_code or outcome.exit_code
                table = table_of(grid, out, errors)
                write_table(table, out)
                done = sum(line.num_finished for line in table.lines.values())
                advance(done, total, f"{cell.name}: {'failed' if outcome.error else 'done'}, {outcome.seconds:.0f} s")
    except Stopped as stopped:
        say(f"{stopped.what}; the same command goes on")
        raise typer.Exit(stopped.exit_code) from None
    write_table(table_of(grid, out, errors), out)
    return errors, exit_code


def _tell_cells(grid: Recipe, out: Path, *, as_json: bool) -> None:
    from fastssl.ablate import state_of

    cells: list[dict[str, Any]] = [
        {
            "row": cell.row,
            "seed": cell.seed,
            "state": state_of(cell, out),
            "run": str(cell.run(out)),
            "trained": not cell.subject,
            "subject": cell.subject or cell.config.method,
            "evaluations": list(cell.evaluations),
        }
        for cell in grid.cells
    ]
    if as_json:
        print_json(cells)
        return
    for cell in cells:
        facts = (cell["state"], one_line(cell["run"]), cell["subject"], ", ".join(cell["evaluations"]))
        print_data("  ".join(facts) + "\n")
    say(f"{len(cells)} cells, {sum(cell['state'] == 'finished' for cell in cells)} of them finished")
