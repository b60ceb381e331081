"""A cell of a grid: one training, or something that is not trained, and its evaluations.

    DIR/ROW/seed_0/cell.json    its settings, and those of the evaluations that are done
                   run/         the run, as of `fastssl train`; summary.json has the evaluations' sections

What is not trained but drawn has such folders too, with a summary alone; what comes with its weights has DIR/ROW.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from fastssl.config import plain
from fastssl.errors import DataError, FastsslError, MachineError, UsageError
from fastssl.evaluate import Evaluation, evaluate, keep_results
from fastssl.faults import machine_error, machine_fault, machine_faults_named
from fastssl.files import complete_or_absent, read_regular
from fastssl.report import write_report
from fastssl.telemetry import read_summary
from fastssl.train import Stopped, complete_run, configure_torch, is_finished

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row with one of its seeds."""

    row: str
    seed: int | None
    """None for what is neither trained nor drawn."""
    config: Any
    """The settings of the run, or of a run with the backbone that is drawn."""
    subject: str
    """What is measured and not trained; empty = the run."""
    evaluations: Mapping[str, Evaluation]
    """Those that can measure it, by name."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Where all of it is kept."""
        return out / self.row if self.seed is None else out / self.row / f"seed_{self.seed}"

    def run(self, out: Path) -> Path:
        """The run folder, or where the summary is of what is no run."""
        return self.folder(out) / "run"

    def settings(self) -> dict[str, Any]:
        """What its numbers depend on besides the evaluations, as JSON has it."""
        return {"subject": self.subject, **({} if self.subject and self.seed is None else _as_json(plain(self.config)))}

    def options(self) -> dict[str, dict[str, Any]]:
        """The options of its evaluations, as JSON has them."""
        return {name: _as_json(asdict(cast(Any, one))) for name, one in self.evaluations.items()}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(values, default=os.fspath))
    return found


@dataclass(frozen=True, kw_only=True)
class Record:
    """What `cell.json` holds."""

    settings: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    """The options of the evaluations that are done."""
    threads: int
    """Of torch, which change how sums are rounded; the cell goes on with as many."""

    def write(self, folder: Path) -> None:
        path = folder / "cell.json"
        with machine_faults_named(path, hint="then give the same command again"), complete_or_absent(path) as file:
            file.write(f"{json.dumps(asdict(self), indent=2)}\n".encode())


def read_record(folder: Path) -> Record | None:
    """What is on record of a cell; None where it was not begun.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "cell.json"
    with machine_faults_named(path):
        try:
            return Record(**json.loads(read_regular(path)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataError(
                "the record of a cell is damaged",
                where=path,
                seen=str(error),
                hint=f"remove {folder}, and the cell is made anew",
            ) from error


def check_cell(cell: Cell, out: Path) -> None:
    """Refuse a cell that was begun with other settings.

    Raises:
        UsageError: names the first setting that is not what it was.
        DataError: as `read_record`.
    """
    folder = cell.folder(out)
    record = read_record(folder)
    if record is None:
        return
    evaluations = cell.options()
    was = {**record.settings, **{f"eval {name}": options for name, options in record.evaluations.items()}}
    now = {**cell.settings(), **{f"eval {name}": evaluations.get(name) for name in record.evaluations}}
    change = next(_changes(was, now), None)
    if change is not None:
        name, before, after = change
        raise UsageError(
            f"the cell {cell.name} was made with another value of {name}",
            where=folder,
            seen=after,
            expected=before,
            hint="set it back; or remove this folder, and the cell is made anew; or give another --out",
        )


def _changes(before: Any, after: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings whose values are not the same, by their dotted names."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from _changes(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield name, before, after


def is_done(cell: Cell, out: Path) -> bool:
    """It is trained and measured."""
    record = read_record(cell.folder(out))
    return record is not None and _is_ready(cell, out) and not list(_left(cell, record, out))


def has_report(cell: Cell, out: Path) -> bool:
    """Its report is written, which is the last that is done; what is not trained has none."""
    return bool(cell.subject) or (cell.run(out) / "report.html").exists()


def _is_ready(cell: Cell, out: Path) -> bool:
    return bool(cell.subject) or is_finished(cell.run(out))


def _left(cell: Cell, record: Record, out: Path) -> Iterator[str]:
    """Names of the evaluations that are still to be made."""
    summary = read_summary(cell.run(out))
    return (name for name in cell.evaluations if name not in record.evaluations or name not in summary)


class Outcome(NamedTuple):
    """How the making of a cell ended."""

    seconds: float
    error: str = ""
    exit_code: int = 0


def make_cell(out: Path, threads: int, cell: Cell) -> Outcome:
    """Train and measure a cell, as far as it is not yet; an error is its outcome, so that others can be made.

    Raises:
        Stopped: a signal asked for it; the same again goes on.
    """
    started = time.monotonic()
    try:
        _make(cell, out, threads)
    except Stopped:
        raise
    except FastsslError as error:
        return Outcome(time.monotonic() - started, str(error), error.exit_code)
    except Exception as error:
        if machine_fault(error) is not None:
            told = machine_error(error)
            return Outcome(time.monotonic() - started, str(told), told.exit_code)
        log.exception("%s: this is a fault of fastssl", cell.name)
        return Outcome(time.monotonic() - started, f"{type(error).__name__}: {error}", FastsslError.exit_code)
    return Outcome(time.monotonic() - started)


def _make(cell: Cell, out: Path, threads: int) -> None:
    folder, run = cell.folder(out), cell.run(out)
    record = read_record(folder)
    if record is None:
        record = Record(settings=cell.settings(), evaluations={}, threads=threads)
        with machine_faults_named(run):
            run.mkdir(parents=True, exist_ok=True)
        record.write(folder)
    with _torch_threads(record.threads):
        if not cell.subject:
            complete_run(cell.config, run, _unheard)
        configure_torch(cell.config)  # as a training of this process has left it, or not, where it went on here
        for name in list(_left(cell, record, out)):
            _measure(cell, name, run)
            record = replace(record, evaluations={**record.evaluations, name: cell.options()[name]})
            record.write(folder)
        if not cell.subject:
            write_report(run)


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(cell: Cell, name: str, run: Path) -> None:
    """Measure with an evaluation, and see that its numbers are kept."""
    evaluation = cell.evaluations[name]
    if not cell.subject:
        evaluate(evaluation, run)
    else:
        if hasattr(evaluation, "progress"):  # a run keeps in its folder what an evaluation learns; this has none
            evaluation = replace(cast(Any, evaluation), progress=run)
        measured = evaluate(evaluation, Path(cell.subject), like=cell.config)
        keep_results(run, {name: measured.section()}, measured.pictures)
    if name not in read_summary(run):
        raise MachineError("the results of an evaluation could not be kept", where=run, seen=f"no section {name}")


def _unheard(done: int, total: int | None = None, words: str = "") -> None:
    """The progress of a training among many; `fastssl runs` tells of each."""
