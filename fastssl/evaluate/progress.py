"""What an evaluation that trains has learnt so far, kept so that a kill does not cost it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastssl.errors import DataError, MachineError
from fastssl.evaluate.subject import RunSubject, Subject
from fastssl.faults import machine_fault, machine_faults_named
from fastssl.files import complete_or_absent

log = logging.getLogger(__name__)


def digest(module: nn.Module) -> str:
    """A hash of a module's weights and statistics, to know later whether a training began from the same ones."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


@dataclass
class Progress:
    """What networks have learnt so far, in a file that is complete or absent; nowhere without a path.

    Raises:
        DataError: the file is damaged.
    """

    path: Path | None
    _states: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file():
            with machine_faults_named(self.path):
                self._states = _read(self.path)

    def of(self, name: str, key: str) -> tuple[int, Mapping[str, Any] | None]:
        """Epochs or steps that a subject's networks have done, and their state; 0 and None where it was another
        training than `key` says."""
        found = self._states.get(name)
        return (found["done"], found["state"]) if found and found["key"] == key else (0, None)

    def keep(self, name: str, key: str, done: int, state: Mapping[str, Any]) -> None:
        """Write what a subject's networks have learnt; a warning tells where that cannot be."""
        self._states[name] = {"key": key, "done": done, "state": state}
        if self.path is None:
            return
        try:
            with complete_or_absent(self.path) as file:
                torch.save(self._states, file)
        except (OSError, MachineError) as error:
            log.warning("what was learnt so far cannot be kept, so a kill would cost it: %s", error)
            self.path = None

    def forget(self) -> None:
        """Take the file away."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def progress_of(subject: Subject, file: str, folder: Path | None = None) -> Progress:
    """What is kept of the networks that are trained when a subject is measured.

    Args:
        subject: a run keeps it in its folder.
        file: its name there.
        folder: where it is kept instead; made if it is not there. A subject that is no run keeps nothing without it,
            which a warning tells.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return Progress(folder / file)
    if isinstance(subject, RunSubject):
        return Progress(subject.run / file)
    log.warning("nothing keeps what is learnt of a subject that is no run: --progress names a folder for it")
    return Progress(None)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        states: dict[str, dict[str, Any]] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises whatever its unpickler met
        if machine_fault(error) is not None:
            raise
        what, hint = "what was learnt so far is damaged", "delete the file, and the training begins anew"
        raise DataError(what, where=path, seen=str(error).splitlines()[0], hint=hint) from error
    return states
