"""What a run tells: log lines, a progress bar, metrics as JSON lines, GPU readings."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fastssl.errors import DataError, one_line
from fastssl.faults import machine_faults_named
from fastssl.files import complete_or_absent, read_regular

log = logging.getLogger(__name__)

Advance = Callable[..., None]
"""Called as `advance(done, total, words)`; total is None where it is not known, words may be left out."""

CONTINUE = "then continue with --resume"
_PATIENCE_S = 5.0
_LINE_EVERY_S = 30.0
_SPEED_OVER_S = 300.0


@cache
def _stderr() -> Console:
    """One for the log and the progress bar, so that lines appear above the bar. It follows `sys.stderr`."""
    return Console(stderr=True)


class _LogHandler(logging.Handler):
    """A record is a line: no breaks inside it, and outside a terminal what it is a warning of stands before it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = one_line(self.format(record).replace("\n  ", ", "))  # an error's own lines begin with two blanks
            if _stderr().is_terminal:
                _stderr().print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
                sys.stderr.write(f"{level}{text}\n")
                sys.stderr.flush()
        except Exception:  # as every handler of logging
            self.handleError(record)


def log_to_stderr() -> None:
    """Show the package's log on stderr; for the command line, a library user configures `logging` as usual."""
    logger = logging.getLogger("fastssl")
    logger.handlers = [_LogHandler()]
    logger.setLevel(logging.INFO)


class _RateColumn(ProgressColumn):
    """How many are done per second, over the last minutes."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self._unit}/s" if task.speed else "")


class _Bar(Progress):
    """A bar with the words below it: beside it, long ones would take its place."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["words"]:
                yield Text(f"  {task.fields['words']}")


@contextmanager
def progress_bar(what: str, *, unit: str | None = None, patience_s: float = _PATIENCE_S) -> Iterator[Advance]:
    """Progress on stderr: a bar where that is a terminal, and lines where it is not. With `unit`, it shows the rate.

    Of the lines there are the first report after `patience_s`, then one each half minute, and the last report; none at
    all where everything took less than `patience_s`.
    """
    if not _stderr().is_terminal:
        lines = _ProgressLines(what, unit, patience_s)
        try:
            yield lines.advance
        finally:
            lines.close()
        return
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *([_RateColumn(unit)] if unit else []),
        TimeRemainingColumn(compact=True),
    )
    # Of reports that are a minute apart, too, the time that is left can be told.
    with _Bar(*columns, console=_stderr(), speed_estimate_period=_SPEED_OVER_S) as bar:
        task = bar.add_task(what, total=None, words="")

        def advance(done: int, total: int | None = None, words: str = "") -> None:
            bar.update(task, completed=done, total=total, words=words)

        yield advance


class _ProgressLines:
    """What a log file says of the progress."""

    def __init__(self, what: str, unit: str | None, patience_s: float) -> None:
        self._what, self._unit = what, unit
        self._started = time.monotonic()
        self._due = self._started + patience_s
        self._first: tuple[float, int] | None = None
        self._untold: str | None = None
        self._has_told = self._is_mute = False

    def advance(self, done: int, total: int | None = None, words: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            # The rate is measured from here: a run that is continued begins with steps that were made before.
            self._first = (now, done)
        self._untold = self._line(now, done, total, words)
        if now >= self._due:
            self._tell()
            self._due = now + _LINE_EVERY_S

    def close(self) -> None:
        if self._untold is not None and (self._has_told or time.monotonic() >= self._due):
            self._tell()

    def _line(self, now: float, done: int, total: int | None, words: str) -> str:
        assert self._first is not None
        seconds, made = now - self._first[0], done - self._first[1]
        rate = made / seconds if made > 0 and seconds > 0 else None
        parts = [f"{self._what}: {done:,}" if total is None else f"{self._what}: {done:,}/{total:,}"]
        if self._unit and rate is not None:
            parts.append(f"{rate:,.0f} {self._unit}/s")
        if rate is not None and total is not None and done < total:
            parts.append(f"{_duration((total - done) / rate)} left")
        return " ".join(", ".join([*parts, *([words] if words else [])]).split())

    def _tell(self) -> None:
        if self._is_mute:
            return
        try:
            sys.stderr.write(f"{self._untold}\n")
            sys.stderr.flush()
        except OSError:
            # Nobody can be told of it, and the work itself is not harmed.
            self._is_mute = True
        self._untold, self._has_told = None, True


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class MetricsWriter:
    """Writes one mapping of numbers per logged step to `metrics.jsonl`.

    Lines of steps after `first_step` that an earlier, interrupted process left behind are dropped, so the file reads as
    if the run had never stopped.

    Args:
        run: the run folder.
        first_step: the last step that is made already.
        logged: the last step of which there should be a line; where there is none, a warning says so.

    Raises:
        MachineError: `metrics.jsonl` cannot be written.
        DataError: a line of it has no step.
    """

    def __init__(self, run: Path, first_step: int = 0, logged: int = 0) -> None:
        self._path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if _step(line, self._path) <= first_step]
        if logged and not any(line["step"] == logged for line in kept):
            words = f"{kept[-1]['step']:.0f}" if kept else "none"
            log.warning("%s lacks lines up to step %d: the last one is %s; the run goes on", self._path, logged, words)
        with machine_faults_named(self._path, hint=CONTINUE):
            with complete_or_absent(self._path) as file:
                file.writelines(f"{json.dumps(line)}\n".encode() for line in kept)
            self._file = self._path.open("r+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)
        self._untold = list[bytes]()
        self._is_late = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line; one that cannot be written is kept, told of once, and tried again with the next."""
        self._untold.append(json.dumps({"step": step, **values}).encode() + b"\n")
        try:
            self._write_out()
        except OSError as error:
            if not self._is_late:
                log.warning("%s cannot be written, and the training goes on: %s", self._path, error.strerror)
            self._is_late = True

    def _write_out(self) -> None:
        self._file.seek(self._end)
        self._file.truncate()  # of a line that is not whole
        content = b"".join(self._untold)
        while content:
            content = content[self._file.write(content) :]
        self._end, self._untold, self._is_late = self._file.tell(), [], False

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with machine_faults_named(self._path, hint=CONTINUE), self._file:
                if self._untold:
                    self._write_out()
        except Exception:
            if error is None:
                raise
            # The line that could not be written is what is already being told.


def _step(line: Any, path: Path) -> float:
    step = line.get("step") if isinstance(line, dict) else None
    if not isinstance(step, int | float):
        raise DataError("a line of the metrics has no step", where=path, seen=line, hint="take the line out")
    return step


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, oldest first.

    A last line cut short by a kill is left out. So are lines in between that a power cut tore, with a warning.

    Raises:
        MachineError: the file cannot be read.
    """
    path = run / "metrics.jsonl"
    with machine_faults_named(path):
        try:
            content = read_regular(path)
        except FileNotFoundError:
            return []
    *complete, _ = content.split(b"\n")
    lines = []
    for line in complete:
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):  # all that the bytes of a line can lead to; counted below
            continue
    if len(lines) < len(complete):
        torn = len(complete) - len(lines)
        log.warning("%s: %d of %d lines are torn, as after a power cut, and left out", path, torn, len(complete))
    return lines


def merge_summary(run: Path, values: Mapping[str, object]) -> dict[str, object]:
    """Add sections to the run's `summary.json` and return all of it.

    A section of the same name is replaced whole: what is left of an earlier one was measured on other data.

    A file that is torn, as after a power cut, is kept as `summary.json.damaged`, and a new one is begun.

    Raises:
        MachineError: it cannot be read or written.
    """
    path = run / "summary.json"
    with machine_faults_named(path, hint="then try again, training with --resume"):
        summary = _whole_summary(path) | dict(values)
        with complete_or_absent(path) as file:
            file.write(f"{json.dumps(summary, indent=2)}\n".encode())
    return summary


def read_summary(run: Path) -> dict[str, Any]:
    """The run's `summary.json`; empty where there is none yet.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    path = run / "summary.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(read_regular(path))
    except (ValueError, OSError) as error:
        raise DataError("its summary cannot be read", where=path, seen=str(error)) from error
    return found if isinstance(found, dict) else {}


def _whole_summary(path: Path) -> dict[str, object]:
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return {}
    try:
        summary = json.loads(content)
    except (ValueError, RecursionError):
        summary = None
    if isinstance(summary, dict):
        return summary
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    log.warning("%s is torn, as after a power cut; it is kept as %s, and a new one is begun", path, aside.name)
    return {}


def gpu_readings(index: int) -> dict[str, float]:
    """Power (W), utilisation (%) and memory in use (GiB) of torch's GPU of this number, by NVML.

    What the driver does not tell, as a virtual machine's may not tell power, is left out; empty where there is none.
    """
    import pynvml

    readings: dict[str, Callable[[Any], float]] = {
        "gpu/power_w": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "gpu/utilisation_percent": lambda gpu: float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        "gpu/memory_gib": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30,
    }
    handle = nvml_handle(index)
    if handle is None:
        return {}
    found = {}
    for name, read in readings.items():
        with suppress(pynvml.NVMLError):
            found[name] = read(handle)
    return found


def nvml_handle(index: int) -> Any:
    """NVML's handle of torch's GPU of this number; None where there is no such GPU or no driver.

    It is found by its UUID: NVML counts all GPUs, and torch only those that CUDA_VISIBLE_DEVICES lets it see.
    """
    import pynvml
    import torch

    if index >= torch.cuda.device_count():
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    except pynvml.NVMLError:
        return None
