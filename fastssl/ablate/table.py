"""The table of a grid: means and spreads over seeds, and published figures in columns of their own."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from fastssl.ablate.cells import Cell, is_done
from fastssl.ablate.recipe import Column, Recipe
from fastssl.addresses import masked
from fastssl.errors import escaped
from fastssl.evaluate import Dataset, Evaluation, Metric
from fastssl.faults import machine_faults_named
from fastssl.files import complete_or_absent
from fastssl.telemetry import read_summary

FINISHED, MISSING, NO_VALUE = "finished", "missing", "-"


class Value(NamedTuple):
    """A row's numbers in a column, in the units of `summary.json`."""

    seeds: Mapping[str, float]
    """By seed, of the cells that are finished and have one."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.seeds.values())

    @property
    def half_range(self) -> float:
        """Half of what lies between the smallest and the largest."""
        return (max(self.seeds.values()) - min(self.seeds.values())) / 2

    def shown(self, metric: Metric) -> str:
        """As it is printed; one seed alone has no spread."""
        spread = f" ± {metric.shown(self.half_range)}" if len(self.seeds) > 1 else ""
        return f"{metric.shown(self.mean)}{spread}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table."""

    states: Mapping[str, str]
    """`finished`, or why there is no number, by the cell's name."""
    num_finished: int
    values: Mapping[str, Value | None]
    """By column; None where no finished cell has such a number."""
    published: Mapping[str, float]

    def shown(self, column: str, metric: Metric) -> str:
        """The text in a column."""
        value = self.values[column]
        if value is not None:
            return value.shown(metric)
        return NO_VALUE if self.num_finished else MISSING


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a grid has found so far."""

    recipe: Recipe
    lines: Mapping[str, Line]

    @property
    def is_complete(self) -> bool:
        """All cells are finished."""
        return all(line.num_finished == len(line.states) for line in self.lines.values())


def table_of(recipe: Recipe, out: Path, errors: Mapping[str, str] | None = None) -> Table:
    """What is in a grid's folder. A cell that is not finished gives no number, whatever of it is there.

    Args:
        recipe: the grid.
        out: its folder.
        errors: of cells that failed, by their names.
    """
    return Table(recipe=recipe, lines={name: _line(recipe, name, out, errors or {}) for name in recipe.rows})


def _line(recipe: Recipe, name: str, out: Path, errors: Mapping[str, str]) -> Line:
    row = recipe.rows[name]
    finished = [cell for cell in row.cells if is_done(cell, out)]
    states = {cell.name: FINISHED if cell in finished else errors.get(cell.name, MISSING) for cell in row.cells}
    summaries = {_seed_of(cell): read_summary(cell.run(out)) for cell in finished}
    is_run = not row.cells[0].subject
    values: dict[str, Value | None] = {}
    for title, column in recipe.columns.items():
        found = {seed: _number(summary, column, is_run=is_run) for seed, summary in summaries.items()}
        numbers = {seed: number for seed, number in found.items() if number is not None}
        values[title] = Value(numbers) if numbers else None
    return Line(states=states, num_finished=len(finished), values=values, published=row.published)


def _seed_of(cell: Cell) -> str:
    return "none" if cell.seed is None else str(cell.seed)


def _number(summary: Mapping[str, Any], column: Column, *, is_run: bool) -> float | None:
    """A column's number in a summary; what is no run has the name `subject` where a run is `trained`."""
    found: Any = summary.get(column.evaluation)
    for part in column.metric.path:
        found = (found or {}).get(part)
    is_own = not is_run and column.subject.startswith("trained")
    value = (found or {}).get(f"subject{column.subject.removeprefix('trained')}" if is_own else column.subject)
    return None if value is None else float(value)


def write_table(table: Table, out: Path) -> None:
    """Write `table.json` and `table.md`, each complete or as it was.

    Raises:
        MachineError: they cannot be written.
    """
    content = {"table.json": json.dumps(as_json(table), indent=2) + "\n", "table.md": as_markdown(table)}
    for name, text in content.items():
        with machine_faults_named(out / name), complete_or_absent(out / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))


def as_json(table: Table) -> dict[str, Any]:
    """All of it, numbers in the units of `summary.json`, and published ones apart and as they were printed."""
    recipe = table.recipe
    return {
        "title": recipe.title,
        "complete": table.is_complete,
        "columns": {
            title: {
                "metric": ".".join((column.evaluation, *column.metric.path, column.subject)),
                "better": column.metric.better,
                "data": data_of(recipe.evaluations[column.evaluation]),
            }
            for title, column in recipe.columns.items()
        },
        "rows": {
            name: {
                "cells": dict(line.states),
                "values": {title: _value_as_json(value) for title, value in line.values.items()},
                "published": dict(line.published),
            }
            for name, line in table.lines.items()
        },
        "published": None if recipe.published is None else recipe.published.model_dump(exclude={"rows"}),
    }


def _value_as_json(value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    spread = value.half_range if len(value.seeds) > 1 else None
    return {"mean": value.mean, "half_range": spread, "count": len(value.seeds), "seeds": dict(value.seeds)}


def data_of(evaluation: Evaluation) -> dict[str, str]:
    """The data sets and files that an evaluation measures with, by its options, as a page can show them."""
    hints = get_type_hints(type(evaluation))
    given = {field.name: getattr(evaluation, field.name) for field in fields(cast(Any, evaluation))}
    return {
        name: masked(escaped(str(value)))
        for name, value in given.items()
        if hints[name] in (Dataset, Dataset | None, Path, Path | None) and value is not None
    }


def as_text(table: Table) -> str:
    """For a terminal: columns aligned, published ones behind a bar, and below what they are."""
    lines = _cells(table)
    ours = 2 + len(table.recipe.columns)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        cells = [f"{cell:<{width}}" if not place else f"{cell:>{width}}" for place, (cell, width) in
                 enumerate(zip(line, widths, strict=True))]  # fmt: skip
        parts = ["  ".join(part) for part in (cells[:ours], cells[ours:]) if part]
        text += "  |  ".join(parts).rstrip() + "\n"
    return f"{table.recipe.title}\n\n{text}\n" + "".join(f"{note}\n" for note in _notes(table))


def as_markdown(table: Table) -> str:
    """A page with the table, what its columns are, and how its cells stand."""
    head, *lines = [[cell.replace("|", r"\|") for cell in line] for line in _cells(table)]
    rows = [head, ["---", *("---:" for _ in head[1:])], *lines]
    page = [f"# {table.recipe.title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    page += [f"- {note}" for note in _notes(table)]
    page += ["", "## Cells", ""]
    for name, line in table.lines.items():
        for cell in table.recipe.rows[name].cells:
            state = line.states[cell.name]
            is_linked = state == FINISHED and not cell.subject
            link = f", [its report]({(cell.run(Path()) / 'report.html').as_posix()})" if is_linked else ""
            page.append(f"- {cell.name}: {state.splitlines()[0]}{link}")
    return "\n".join(page) + "\n"


def _cells(table: Table) -> list[list[str]]:
    """The table's texts, headings first: the row, its seeds, our columns, published columns."""
    recipe = table.recipe
    published = {} if recipe.published is None else recipe.published.columns
    shown = {key: column for key, column in published.items() if key in _used(recipe)}
    units = {title: column.metric.unit for title, column in recipe.columns.items()}
    ours = [f"{title} ({unit})" if unit else title for title, unit in units.items()]
    lines = [["", "seeds", *ours, *(f"{column.source}: {column.name}" for column in shown.values())]]
    for name, line in table.lines.items():
        seeds = f"{line.num_finished} of {len(line.states)}"
        numbers = [line.shown(title, column.metric) for title, column in recipe.columns.items()]
        figures = [str(line.published[key]) if key in line.published else "" for key in shown]
        lines.append([name, seeds, *numbers, *figures])
    return lines


def _notes(table: Table) -> Sequence[str]:
    recipe = table.recipe
    notes = ["Ours: mean over the seeds ± half of their range."]
    for wanted in ("higher", "lower"):
        titles = [title for title, column in recipe.columns.items() if column.metric.better == wanted]
        notes += [f"{wanted.capitalize()} is better: {'; '.join(titles)}."] if titles else []
    for evaluation, made in recipe.evaluations.items():
        data = ", ".join(f"{name} {path}" for name, path in data_of(made).items())
        notes.append(f"{evaluation} measures with {data}.")
    if recipe.published is None:
        return notes
    title = recipe.published.title
    notes.append(f"Published, by others and on other data, so no number is to be set against ours: {title}.")
    notes += [
        f"{column.source}: {column.name}: {column.protocol} ({column.reference})."
        for key, column in recipe.published.columns.items()
        if key in _used(recipe)
    ]
    return [*notes, recipe.published.note]


def _used(recipe: Recipe) -> set[str]:
    """The published columns of which a row has a figure."""
    return {key for row in recipe.rows.values() for key in row.published}
