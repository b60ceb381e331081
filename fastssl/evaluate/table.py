"""Rows as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from fastssl.evaluate.evaluation import Row


def table(rows: Sequence[Row], *, keys: bool = False) -> str:
    """Metrics line by line, below the headings of their groups, and subjects as columns; "-" where there is no value.

    Args:
        rows: what is shown; a row without any value is left out. Intervals stand in a line below their values.
        keys: whether metrics have their names among the key results, and no intervals.

    Returns:
        The table; every line ends with a line break. Empty where there is nothing to show.
    """
    rows = [row for row in rows if any(value is not None for value in row.values.values())]
    columns = list(dict.fromkeys(name for row in rows for name, value in row.values.items() if value is not None))
    lines = [["", *(column.replace("_", " ") for column in columns)]]
    group = ""
    for row in rows:
        metric = row.metric
        if metric.group != group and not keys:
            group = metric.group
            lines.append([group, *("" for _ in columns)])
        name = metric.key if keys else f"  {metric.name}" if group else metric.name
        values = [row.values.get(column) for column in columns]
        numbers = ["-" if value is None else metric.shown(value) for value in values]
        lines.append([f"{name} ({metric.hint})" if metric.hint else name, *numbers])
        if row.intervals and not keys:
            intervals = [row.intervals.get(column) for column in columns]
            ends = ["" if interval is None else " to ".join(map(metric.shown, interval)) for interval in intervals]
            lines.append(["  95 % interval, of the images alone", *ends])
    return "".join(f"{line.rstrip()}\n" for line in _aligned(lines)) if rows else ""


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text: the first column to the left, the others to the right, two spaces between them."""
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        f"{line[0]:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], others, strict=True))
        for line in lines
    ]
