"""Places where the numbers of a run are also shown, each in a file of its own.

To add one, write the file and add its class to the tuple below. `metrics.jsonl` has all numbers in any case.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol

from fastssl.addresses import masked
from fastssl.config import Config, plain
from fastssl.errors import ConfigError, UsageError
from fastssl.files import complete_or_absent, read_regular
from fastssl.trackers.mlflow import MLflow
from fastssl.trackers.tensorboard import TensorBoard
from fastssl.trackers.wandb import WandB

__all__ = ["TRACKERS", "TensorBoard", "Tracker", "Trackers", "check_trackers"]

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place where numbers of runs are shown, made when a training begins or goes on.

    What it raises ends it and not the training.
    """

    name: ClassVar[str]
    """As `train.trackers` has it."""
    package: ClassVar[str]
    """What has to be installed; it is imported here alone."""

    def __init__(self, run: Path, settings: Mapping[str, object], first_step: int, known: str | None) -> None:
        """Begin.

        Args:
            run: the run folder.
            settings: of the run by their names, such as ``optim.lr``.
            first_step: the last step that is made already; what was told of later ones does not count.
            known: what `identity` was when the run began; None for a new run.
        """

    @property
    def identity(self) -> str | None:
        """By which the place knows the run again; None where it needs nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a step by their names."""

    def close(self) -> None:
        """End."""


_TRACKERS: tuple[type[Tracker], ...] = (TensorBoard, WandB, MLflow)
TRACKERS = {tracker.name: tracker for tracker in _TRACKERS}
"""All by their names."""


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that cannot be used.

    Raises:
        ConfigError: there is no such tracker.
        UsageError: its package is not installed.
    """
    names = list(names)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("a tracker is named twice", where="train.trackers", seen=repr(name), expected="once")
        if name not in TRACKERS:
            nearest = difflib.get_close_matches(name, TRACKERS, n=1)
            expected = f"{nearest[0]!r}? " if nearest else ""
            expected += f"All names: {', '.join(TRACKERS)}"
            raise ConfigError("there is no such tracker", where="train.trackers", seen=repr(name), expected=expected)
        package = TRACKERS[name].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"the tracker {name} needs a package that is not installed",
                where="train.trackers",
                seen=str(error),
                hint=f"pip install {package}, or leave it out",
            ) from error


class Trackers:
    """The trackers of a run. One that fails is told once and left alone from then on; the training goes on."""

    def __init__(self, run: Path, config: Config, first_step: int = 0) -> None:
        self._live: dict[str, Tracker] = {}
        identities = run / "trackers.json"
        known = _known(identities)
        for name in config.train.trackers:
            self._attempt(name, partial(self._begin, name, run, config, first_step, known))
        found = {name: tracker.identity for name, tracker in self._live.items() if tracker.identity is not None}
        if known | found != known:
            try:
                with complete_or_absent(identities) as file:
                    file.write(f"{json.dumps(known | found)}\n".encode())
            except OSError as error:
                log.warning("%s cannot be written, so --resume begins new ones: %s", identities, error.strerror)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a step."""
        for name, tracker in list(self._live.items()):
            self._attempt(name, partial(tracker.write, step, values))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self._live.items()):
            self._attempt(name, tracker.close)

    def _begin(self, name: str, run: Path, config: Config, first_step: int, known: Mapping[str, str]) -> None:
        self._live[name] = TRACKERS[name](run, _flat(config), first_step, known.get(name))

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever the client of some service has
            self._live.pop(name, None)
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("%s: %s; the run goes on without it, metrics.jsonl has all", name, words)


def _known(path: Path) -> dict[str, str]:
    try:
        found = json.loads(read_regular(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, so trackers begin new runs: %s", path, error)
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _flat(config: Config) -> dict[str, object]:
    """Settings by section and name; secrets in addresses are masked."""
    flat: dict[str, Any] = {}
    for section, values in plain(config).items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            if isinstance(value, dict):
                value = {masked(str(path)): weight for path, weight in value.items()}
            flat[f"{section}.{name}".rstrip(".")] = value
    return flat
