"""The runs below a folder, and how they stand, from what they left there; torch is not needed for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastssl.config import read_yaml
from fastssl.errors import FastsslError, UsageError
from fastssl.files import alone_in
from fastssl.telemetry import read_metrics, read_summary

State = Literal["running", "finished", "stopped", "failed", "ended", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How a run stands."""

    path: str
    state: State
    """`stopped` by a signal, `failed` by an error; `ended` without a word, as by kill -9 or a power cut."""
    why: str
    """Of a run that was stopped, failed or cannot be read."""
    method: str
    steps: int
    """The last one on record."""
    rate: float | None
    """Of the last line of metrics, as it is named there: pairs or images per second."""
    losses: dict[str, float]
    """Of that line, by name."""


def find_runs(folder: Path) -> Iterator[RunState]:
    """How each run at or below a folder stands, in the order of their paths.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError("there is no such folder", where=folder)
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "config.yaml" in files:
            folders.clear()  # no run holds others
            yield _state(Path(place))


def _state(run: Path) -> RunState:
    try:
        method = str(read_yaml(run / "config.yaml").get("method"))
        lines = read_metrics(run)
        summary = read_summary(run)
    except FastsslError as error:
        return RunState(path=str(run), state="unreadable", why=error.what, method="", steps=0, rate=None, losses={})
    last = lines[-1] if lines else {"step": 0}
    step = int(last["step"])
    state, why = _how(run, step, summary.get("ended") or {})
    rates = [value for name, value in last.items() if name.startswith("throughput/") and name.endswith("_per_s")]
    return RunState(
        path=str(run),
        state=state,
        why=why,
        method=method,
        steps=step,
        rate=rates[0] if rates else None,
        losses={name[5:]: value for name, value in last.items() if name.startswith("loss/")},
    )


def _how(run: Path, step: int, ended: dict[str, Any]) -> tuple[State, str]:
    try:
        with alone_in(run, "training"):
            pass
    except UsageError:
        return "running", ""
    except OSError:
        pass  # who may not open the folder cannot ask; what is written there still counts
    known = {"finished", "stopped", "failed"}
    # What an earlier process wrote says nothing of one that came after it.
    if ended.get("how") in known and ended.get("step", 0) >= step:
        return ended["how"], str(ended.get("why", ""))
    return "ended", ""
