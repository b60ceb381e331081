"""The key results of a run as text."""

from __future__ import annotations

from pathlib import Path

from fastssl.evaluate import EVALUATIONS, table
from fastssl.faults import machine_faults_named
from fastssl.report.results import earlier_step, key_rows
from fastssl.report.run import read_run


def summary_table(run: Path) -> str:
    """The key held-out results of a run, and its throughput, as plain text that fits 100 columns.

    Metrics are lines and networks are columns; "-" where a network has no such number. What was not measured for any
    network is left out, so the text is empty where nothing was. Numbers of an earlier step are told as such.

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
    text = table(key_rows(read), keys=True)
    for evaluation in EVALUATIONS.values():
        if earlier := earlier_step(read, evaluation):
            text += f"The numbers of {evaluation.name} are {earlier}.\n"
    speed = read.throughput
    if speed is not None:
        text += (
            f"{speed.rate:.1f} {speed.unit}/s, waiting for data {speed.data_wait:.1f} % of the time, "
            f"limited by {speed.limited_by}\n"
        )
    return text
