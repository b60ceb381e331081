"""What training and evaluation left in a run folder, read as far as it is whole."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.files import read_regular
from fastssl.methods import Method, find_method, read_config, unit_of
from fastssl.train.checkpoint import latest_checkpoint


class Picture(NamedTuple):
    """A PNG and its size in pixels."""

    base64: str
    width: int
    height: int


class Throughput(NamedTuple):
    """Rates of the whole run; the wait for data is in percent of the time."""

    rate: float
    unit: str
    data_wait: float
    limited_by: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder and the content of its files."""

    folder: Path
    config: Config
    metrics: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    torn: list[str] = field(default_factory=list)
    """What could not be read, file by file: a power cut leaves files that are not whole."""

    @property
    def method(self) -> type[Method]:
        """The method that was trained."""
        return find_method(self.config.method)

    @property
    def domains(self) -> list[str]:
        """Names of the domains that were read."""
        return [request.name for request in self.method.domains(self.config)]

    @property
    def step(self) -> int:
        """The last step on record."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def checkpoint_step(self) -> int:
        """The step of the newest checkpoint, which an evaluation measures; 0 where there is none."""
        newest = latest_checkpoint(self.folder)
        return 0 if newest is None else int(newest.stem.removeprefix("step_"))

    @property
    def throughput(self) -> Throughput | None:
        """None where training has not ended."""
        values, unit = self.section("throughput"), unit_of(self.config)
        if f"{unit}_per_s" not in values:
            unit = self.method.unit  # of a run from before a single domain had images
        rate, wait = values.get(f"{unit}_per_s"), values.get("data_wait_fraction")
        if isinstance(rate, int | float) and isinstance(wait, int | float):
            return Throughput(rate, unit, 100 * wait, str(self.summary.get("limited_by", "unknown")))
        return None

    def section(self, *names: str) -> Mapping[str, Any]:
        """A section of the summary; empty where it was not measured.

        Raises:
            DataError: there is something else in its place.
        """
        values: Any = self.summary
        for name in names:
            values = values.get(name, {})
            if not isinstance(values, dict):
                raise _damaged(self.folder / "summary.json", f"{'.'.join(names)}: {values!r}", "sections of numbers")
        return dict(values)

    def picture(self, name: str) -> Picture | None:
        """A picture of the run's samples; None where it does not exist, or is not whole, which is noted."""
        path = self.folder / "samples" / name
        if not path.exists():
            return None
        content = read_regular(path)
        try:
            with Image.open(BytesIO(content)) as image:
                width, height = image.size
                image.verify()
        except (OSError, SyntaxError):  # of its bytes: they are all in memory
            self.torn.append(f"samples/{name} is no whole picture")
            return None
        return Picture(base64.b64encode(content).decode("ascii"), width, height)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: the folder is no run, or one of its files holds something else.
        ConfigError: its `config.yaml` cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(
            "the folder holds no run", where=folder, expected="a config.yaml", hint="give the --out of a training"
        )
    torn = list[str]()
    metrics = _read_metrics(folder / "metrics.jsonl", torn)
    summary = _read_summary(folder / "summary.json", torn)
    return Run(folder=folder, config=read_config(folder / "config.yaml"), metrics=metrics, summary=summary, torn=torn)


def _read_metrics(path: Path, torn: list[str]) -> list[dict[str, float]]:
    """The lines that are whole; a last one that is being written is not missed."""
    complete, _, rest = read_regular(path).rpartition(b"\n") if path.exists() else (b"", b"", b"")
    metrics, lost = [], int(b"\0" in rest)  # as a power cut leaves what was never written
    for text in complete.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            lost += 1
            continue
        if not (isinstance(line, dict) and "step" in line and all(isinstance(v, int | float) for v in line.values())):
            raise _damaged(path, line, "numbers by name, one of them the step")
        metrics.append(line)
    if lost:
        torn.append(f"{path.name} has {lost} lines that are not whole")
    return metrics


def _read_summary(path: Path, torn: list[str]) -> dict[str, Any]:
    try:
        summary = json.loads(read_regular(path)) if path.exists() else {}
    except ValueError:
        torn.append(f"{path.name} is not whole, so nothing that was measured is known")
        return {}
    if not isinstance(summary, dict):
        raise _damaged(path, type(summary).__name__, "a JSON object")
    return summary


def _damaged(path: Path, seen: object, expected: str) -> DataError:
    return DataError("a file of the run is damaged", where=path, seen=seen, expected=expected)
