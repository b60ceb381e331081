"""Measured numbers as rows, cells and bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from fastssl.evaluate import EVALUATIONS, Evaluation, Metric, Row
from fastssl.report.run import Run

_MEANINGS = {
    "trained": "",
    "untrained": "the same network before training",
    "constant": "the best prediction that does not look at the image",
}
_OF_ANOTHER_RUN = "another run, measured beside this one"


class Column(NamedTuple):
    """Something that was measured, and what it is; what `trained` is needs no words."""

    name: str
    meaning: str

    @property
    def title(self) -> str:
        """The name as a heading."""
        return self.name.replace("_", " ").capitalize()


class Cell(NamedTuple):
    """A number; its text is empty where there is none."""

    text: str
    best: bool


class Line(NamedTuple):
    """A metric and its cells, one for each column of the table."""

    metric: Metric
    cells: Sequence[Cell]


class Table(NamedTuple):
    """Metrics line by line in groups with titles, networks as columns."""

    columns: Sequence[Column]
    groups: Sequence[tuple[str, Sequence[Line]]]


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


def measured_rows(run: Run, evaluation: type[Evaluation]) -> list[Row]:
    """What the summary has of an evaluation, without what has no value."""
    places = ((metric, run.section(evaluation.name, *metric.path)) for metric in evaluation.metrics)
    rows = (Row(metric, _numbers(values)) for metric, values in places)
    return [row for row in rows if row.values]


def without_value(run: Run, evaluation: type[Evaluation]) -> list[str]:
    """What was measured and has no value for any network, as a depth where none is known."""
    return [
        f"{metric.group}: {metric.name}" if metric.group else metric.name
        for metric in evaluation.metrics
        if (values := run.section(evaluation.name, *metric.path)) and not _numbers(values)
    ]


def key_rows(run: Run) -> list[Row]:
    """The key results of all evaluations."""
    return [row for evaluation in EVALUATIONS.values() for row in measured_rows(run, evaluation) if row.metric.key]


def cards(run: Run) -> list[Card]:
    """The key results that have a number for the trained network."""
    return [_card(row.metric, _numbers(row.values)) for row in key_rows(run) if "trained" in row.values]


def table(rows: Sequence[Row]) -> Table | None:
    """The rows in their groups; None where there are none."""
    columns = columns_of(rows)
    groups = groupby((_line(row.metric, _numbers(row.values), columns) for row in rows), lambda line: line.metric.group)
    return Table(columns, [(title, list(lines)) for title, lines in groups]) if rows else None


def columns_of(rows: Iterable[Row]) -> list[Column]:
    """What has a number in any of the rows."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [Column(name, _MEANINGS.get(name, _OF_ANOTHER_RUN)) for name in names]


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _card(metric: Metric, values: Mapping[str, float]) -> Card:
    lengths = {name: abs(value) if math.isfinite(value) else 0.0 for name, value in values.items()}
    longest = 1 if metric.better == "near 0.5" else max(lengths.values()) or 1
    columns = columns_of([Row(metric, values)])
    bars = [
        Bar(column, round(100 * lengths[column.name] / longest, 1), metric.shown(values[column.name]))
        for column in columns
    ]
    costs = {column.title.lower(): metric.cost(values[column.name]) for column in columns}
    trained = costs.pop("trained")
    beaten = [name for name, cost in costs.items() if trained < cost]
    return Card(metric, bars, beaten, unbeaten=[name for name in costs if name not in beaten])


def _line(metric: Metric, values: Mapping[str, float], columns: Sequence[Column]) -> Line:
    best = _best(metric, values)
    cells = [
        Cell(metric.shown(values[column.name]) if column.name in values else "", column.name in best)
        for column in columns
    ]
    return Line(metric, cells)


def _best(metric: Metric, values: Mapping[str, float]) -> set[str]:
    """The columns with the best value; none where all are as good, or where no value is better than another."""
    costs = {column: metric.cost(value) for column, value in values.items()}
    finite = {cost for cost in costs.values() if math.isfinite(cost)}
    if not metric.better or len(set(costs.values())) < 2 or not finite:
        return set()
    return {column for column, cost in costs.items() if cost == min(finite)}
