"""What a run tells: log lines, a progress bar, metrics as JSON lines and TensorBoard events, GPU readings."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fastssl.files import complete_or_absent

Advance = Callable[..., None]
"""Called as `advance(done, total, words)`; total is None where it is not known, words may be left out."""


def log_to_stderr() -> None:
    """Show the package's log on stderr; for the command line, a library user configures `logging` as usual."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, show_level=False)
    logger = logging.getLogger("fastssl")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


class _RateColumn(ProgressColumn):
    """How many are done per second, over the last half minute."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self._unit}/s" if task.speed else "")


@contextmanager
def progress_bar(what: str, *, unit: str | None = None) -> Iterator[Advance]:
    """A progress bar on stderr where that is a terminal; nothing where it is not. With `unit`, it shows the rate."""
    console = Console(stderr=True)
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *([_RateColumn(unit)] if unit else []),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, words="")

        def advance(done: int, total: int | None = None, words: str = "") -> None:
            bar.update(task, completed=done, total=total, words=words)

        yield advance


class MetricsWriter:
    """Writes one mapping of numbers per logged step to `metrics.jsonl` and to TensorBoard events.

    Lines of steps after `first_step` that an earlier, interrupted process left behind are dropped, so the file reads as
    if the run had never stopped.
    """

    def __init__(self, run: Path, first_step: int = 0) -> None:
        # Imports torch; `fastssl --help` imports this module.
        from torch.utils.tensorboard import SummaryWriter

        path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= first_step]
        with complete_or_absent(path) as file:
            file.writelines(f"{json.dumps(line)}\n".encode() for line in kept)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._events.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, oldest first; a last line cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()]


def merge_summary(run: Path, values: Mapping[str, object]) -> dict[str, object]:
    """Add sections to the run's `summary.json`, replacing those of the same name, and return all of it."""
    path = run / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    _merge(summary, values)
    with complete_or_absent(path) as file:
        file.write(f"{json.dumps(summary, indent=2)}\n".encode())
    return dict(summary)


def _merge(into: dict[str, object], values: Mapping[str, object]) -> None:
    for name, value in values.items():
        inner = into.get(name)
        if isinstance(value, Mapping) and isinstance(inner, dict):
            _merge(inner, value)
        else:
            into[name] = value


def gpu_readings(index: int) -> dict[str, float]:
    """Power (W), utilisation (%) and memory in use (GiB) of a GPU, by NVML; empty where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return {
            "gpu/power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "gpu/utilisation_percent": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "gpu/memory_gib": pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        }
    except pynvml.NVMLError:
        return {}
