"""`fastssl report`."""

from __future__ import annotations

from fastssl.cli.options import Run
from fastssl.cli.output import print_data, say
from fastssl.errors import one_line


def report(run: Run) -> None:
    """Write the run's report.html (curves, predictions, neighbours, tables, settings) and print the key results."""
    from fastssl.report import summary_table, write_report

    path = write_report(run)
    print_data(summary_table(run))
    say(f"the report is {one_line(str(path))}")
