"""Measured numbers as rows, cells and bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, takewhile
from typing import NamedTuple

from fastssl.evaluate import EVALUATIONS, Evaluation, Metric, Row
from fastssl.metrics import Interval
from fastssl.report.run import Run

_MEANINGS = {
    "trained": "",
    "trained_reestimated": "the trained network with statistics of the measured images in its batch norms",
    "untrained": "the same network before training",
    "constant": "the best prediction that does not look at the image",
    "unmoved": "the guess that no point of a photo has moved",
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
    """A number and its 95 % interval; their texts are empty where there is none."""

    text: str
    best: bool
    interval: str


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
    rows = (
        Row(
            metric,
            _numbers(run.section(evaluation.name, *metric.path)),
            _intervals(run.section(evaluation.name, *metric.interval_path)),
        )
        for metric in _metrics(run, evaluation)
    )
    return [row for row in rows if row.values]


def without_value(run: Run, evaluation: type[Evaluation]) -> list[str]:
    """What was measured and has no value for any network, as a depth where none is known."""
    return [
        f"{metric.group}: {metric.name}" if metric.group else metric.name
        for metric in _metrics(run, evaluation)
        if (values := run.section(evaluation.name, *metric.path)) and not _numbers(values)
    ]


def earlier_step(run: Run, evaluation: type[Evaluation]) -> str:
    """In words, of which step the numbers are, where the run has gone on since; else empty."""
    conditions = run.section(evaluation.name, "conditions")
    step, checkpoint = conditions.get("step"), conditions.get("checkpoint")
    if not isinstance(step, int) or step >= run.checkpoint_step:
        return ""
    named = f" ({checkpoint})" if checkpoint else ""
    return f"of step {step:,}{named}, and the run has gone on to step {run.checkpoint_step:,}"


def _metrics(run: Run, evaluation: type[Evaluation]) -> list[Metric]:
    """What an evaluation can give, and for what stands for every name in a place, what the summary has there."""
    return [
        one
        for metric in evaluation.metrics
        for one in metric.of_each(run.section(evaluation.name, *takewhile(lambda name: name != "*", metric.path)))
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
    groups = groupby((_line(row, columns) for row in rows), lambda line: line.metric.group)
    return Table(columns, [(title, list(lines)) for title, lines in groups]) if rows else None


def columns_of(rows: Iterable[Row]) -> list[Column]:
    """What has a number in any of the rows."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [Column(name, _MEANINGS.get(name, _OF_ANOTHER_RUN)) for name in names]


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _intervals(values: Mapping[str, object]) -> dict[str, Interval]:
    return {
        name: (float(ends[0]), float(ends[1]))
        for name, ends in values.items()
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    }


def _card(metric: Metric, values: Mapping[str, float]) -> Card:
    lengths = {name: abs(value) if math.isfinite(value) else 0.0 for name, value in values.items()}
    longest = 1 if metric.better == "near 0.5" else max(lengths.values()) or 1
    columns = columns_of([Row(metric, values)])
    bars = [
        Bar(column, round(100 * lengths[column.name] / longest, 1), metric.shown(values[column.name]))
        for column in columns
    ]
    # The same weights with other statistics are no rival.
    rivals = [column for column in columns if column.name != "trained_reestimated"]
    costs = {column.title.lower(): metric.cost(values[column.name]) for column in rivals}
    trained = costs.pop("trained")
    beaten = [name for name, cost in costs.items() if trained < cost]
    return Card(metric, bars, beaten, unbeaten=[name for name in costs if name not in beaten])


def _line(row: Row, columns: Sequence[Column]) -> Line:
    metric, values = row.metric, _numbers(row.values)
    best = _best(metric, values)
    cells = [
        Cell(
            metric.shown(values[column.name]) if column.name in values else "",
            column.name in best,
            " to ".join(map(metric.shown, row.intervals.get(column.name, ()))),
        )
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
