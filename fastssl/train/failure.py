"""What a run leaves of a step whose loss was not finite, so that the step can be made again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastssl.errors import DataError, MachineError
from fastssl.faults import machine_faults_named
from fastssl.files import complete_or_absent, read_regular
from fastssl.loader import Domain

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A step that failed, and all that leads to it besides the run's settings."""

    step: int
    why: str
    seed: int
    checkpoint: str | None
    """Name of the newest one before the step; None = the run had none, and begins from its seed."""
    total_steps: int
    """On which the learning rate depends."""
    world_size: int
    positions: dict[str, int]
    """Where the step's global batch begins in each domain's endless sequence."""
    fingerprints: dict[str, str]
    batches: dict[str, Any]
    """Of each domain: keys of the samples, with their shards, and how each is seen; those of the first rank."""


def batches_at(domains: Mapping[str, Domain], positions: Mapping[str, int], world_size: int) -> dict[str, Any]:
    """What the first rank's batches hold that begin at these positions, before damaged samples are replaced."""
    found: dict[str, Any] = {}
    for name, domain in domains.items():
        samples, views = next(domain.plan(position=positions[name], world_size=world_size).steps)
        seen = {field.name: getattr(views, field.name).tolist() for field in fields(views)}
        found[name] = {"keys": [domain.samples.place(number) for number in samples.tolist()], "views": seen}
    return found


def failure_path(run: Path, step: int) -> Path:
    """The file of a step that failed."""
    return run / f"failed_step_{step:08d}.json"


def write_failure(run: Path, failure: Failure) -> Path | None:
    """Write `failed_step_XXXXXXXX.json`; None where it cannot be, which is not what has to be told."""
    path = failure_path(run, failure.step)
    try:
        with machine_faults_named(path), complete_or_absent(path) as file:
            file.write(f"{json.dumps(asdict(failure), indent=1)}\n".encode())
    except MachineError as error:
        log.warning("the step that failed is not kept: %s (%s)", error.what, path)
        return None
    return path


def read_failure(path: Path) -> Failure:
    """Read what `write_failure` wrote.

    Raises:
        DataError: there is no such file, or it is another.
    """
    with machine_faults_named(path):
        try:
            failure = Failure(**json.loads(read_regular(path)))
        except (OSError, ValueError, TypeError) as error:
            what = "the file does not tell of a step that failed"
            hint = "give a failed_step_....json of a run folder"
            raise DataError(what, where=path, seen=str(error).splitlines()[0], hint=hint) from error
    return failure
