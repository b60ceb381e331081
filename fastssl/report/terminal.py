"""The key results of a run as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastssl.faults import machine_faults_named
from fastssl.report.results import known, occurring
from fastssl.report.run import read_run
from fastssl.report.sections import key_metrics


def summary_table(run: Path) -> str:
    """The key held-out results of a run, and its throughput, as plain text that fits 100 columns.

    Metrics are lines and networks are columns; "-" where a network has no such number. What was not measured for any
    network is left out, so the text is empty where nothing was.

    Args:
        run: the run folder; nothing in it changes.

    Returns:
        The table; every line ends with a line break.

    Raises:
        DataError: the folder is no run, or one of its files holds something else.
        ConfigError: its `config.yaml` cannot be read.
        MachineError: a file cannot be read, through no fault of its own.
    """
    with machine_faults_named():
        read = read_run(run)
    rows = {metric: row for group, metric in key_metrics() if (row := known(read.section(*group.section, metric.name)))}
    columns = occurring(rows.values())
    table = [["", *(column.title.lower() for column in columns)]]
    for metric, row in rows.items():
        numbers = [metric.text(row[column.name]) if column.name in row else "-" for column in columns]
        table.append([f"{metric.key_title} ({metric.hint})", *numbers])
    lines = _aligned(table) if rows else []
    speed = read.throughput
    if speed is not None:
        lines.append(
            f"{speed.rate:.1f} {speed.unit}/s, waiting for data {speed.data_wait:.1f} % of the time, "
            f"limited by {speed.limited_by}"
        )
    return "".join(f"{line}\n" for line in lines)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text: the first column to the left, the others to the right, two spaces between them."""
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"{line[0]:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], others, strict=True))
        for line in table
    ]
