"""Measured numbers as rows, cells and bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastssl.report.run import Run
from fastssl.report.sections import COLUMNS, Column, Evaluation, Metric, key_metrics

Numbers = Mapping[str, float]
"""Of one metric, by column."""


class Cell(NamedTuple):
    """A number; its text is empty where there is none."""

    text: str
    best: bool


class Row(NamedTuple):
    """A metric and its cells, one for each column of the table."""

    metric: Metric
    cells: Sequence[Cell]


class Table(NamedTuple):
    """Metrics line by line in groups with titles, networks as columns."""

    columns: Sequence[Column]
    groups: Sequence[tuple[str, Sequence[Row]]]


class Bar(NamedTuple):
    """A number, and its length in percent of the longest bar."""

    column: Column
    percent: float
    text: str


class Card(NamedTuple):
    """A key result: its number for every network, and which of the others the trained one beats and does not."""

    metric: Metric
    bars: Sequence[Bar]
    beaten: Sequence[str]
    unbeaten: Sequence[str]


def known(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the columns that there are, in their order."""
    return {column.name: float(row[column.name]) for column in COLUMNS if isinstance(row.get(column.name), int | float)}


def occurring(rows: Iterable[Numbers]) -> list[Column]:
    """The columns that have a number in any of the rows."""
    names = set[str]().union(*rows)
    return [column for column in COLUMNS if column.name in names]


def cards(run: Run) -> list[Card]:
    """The key results that have a number for the trained network."""
    rows = ((metric, known(run.section(*group.section, metric.name))) for group, metric in key_metrics())
    return [_card(metric, row) for metric, row in rows if "trained" in row]


def _card(metric: Metric, row: Numbers) -> Card:
    numbers = [(column, row[column.name]) for column in occurring([row])]
    lengths = [abs(value) if math.isfinite(value) else 0.0 for _, value in numbers]
    longest = 1 if metric.better == "near 0.5" else max(lengths) or 1
    bars = [
        Bar(column, round(100 * length / longest, 1), metric.text(value))
        for (column, value), length in zip(numbers, lengths, strict=True)
    ]
    cost = metric.cost(row["trained"])
    others = {column.title.lower(): metric.cost(value) for column, value in numbers if column.name != "trained"}
    beaten = [name for name, other in others.items() if cost < other]
    return Card(metric, bars, beaten, unbeaten=[name for name in others if name not in beaten])


def table(run: Run, evaluation: Evaluation) -> Table | None:
    """What was measured, and has a value; None where nothing has."""
    rows = {
        group: {metric: row for metric in group.metrics if (row := known(run.section(*group.section, metric.name)))}
        for group in evaluation.groups
    }
    columns = occurring(row for group in rows.values() for row in group.values())
    if not columns:
        return None
    return Table(columns, [(group.title, [_row(*line, columns) for line in rows[group].items()]) for group in rows])


def _row(metric: Metric, row: Numbers, columns: Sequence[Column]) -> Row:
    best = _best(metric, row)
    return Row(
        metric,
        [Cell(metric.text(row[column.name]) if column.name in row else "", column.name in best) for column in columns],
    )


def _best(metric: Metric, row: Numbers) -> set[str]:
    """The columns with the best value; none where all are as good, or where no value is better than another."""
    costs = {column: metric.cost(value) for column, value in row.items()}
    finite = {cost for cost in costs.values() if math.isfinite(cost)}
    if not metric.better or len(set(costs.values())) < 2 or not finite:
        return set()
    return {column for column, cost in costs.items() if cost == min(finite)}


def without_value(run: Run, evaluation: Evaluation) -> list[str]:
    """What was measured and has no value for any network, as a depth where none is known."""
    return [
        f"{group.title}: {metric.title}" if group.title else metric.title
        for group in evaluation.groups
        for metric in group.metrics
        if (row := run.section(*group.section, metric.name)) and not known(row)
    ]
