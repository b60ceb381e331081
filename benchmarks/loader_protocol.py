"""How `loaders.py` talks to the processes that load: one line of JSON in, one line of JSON out.

Every loader runs in a process of its own, so that none inherits the threads or the memory of another. This module
needs nothing but NumPy, because one of the processes is run by another Python.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Settings = dict[str, Any]
"""`batch` and `workers`; others as the loader takes them. `fixed` is [top, left, flip] of every sample's window, which
then come in the order of their keys; without it samples and windows are random."""

WARM_UP = 1.0
"""Seconds; longer than what is queued while the other loaders are measured."""


def serve(load: Callable[[Settings], Iterator[Sequence[Any]]]) -> None:
    """Answer `save` and `measure` requests until the input ends.

    Args:
        load: opens endless batches; the length of a batch's first part is its number of samples.
    """
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings: Settings | None = None
    batches: Iterator[Sequence[Any]] = iter(())
    for line in sys.stdin:
        request = json.loads(line)
        if request["settings"] != settings:
            settings = request["settings"]
            # The last loader lets go of its threads and memory before the next one begins.
            batches = iter(())
            batches = load(settings)
        if "save" in request:
            np.savez(request["save"], *[np.asarray(part) for part in next(batches)])
            answer: dict[str, float] = {}
        else:
            answer = measure(batches, request["seconds"])
        answers.write(json.dumps(answer) + "\n")


def measure(batches: Iterator[Sequence[Any]], seconds: float) -> dict[str, float]:
    """Count samples for at least `seconds`, from batch to batch."""
    ready = time.perf_counter() + WARM_UP
    while time.perf_counter() < ready:
        next(batches)
    started = time.perf_counter()
    samples, elapsed = 0, 0.0
    while elapsed < seconds:
        samples += len(next(batches)[0])
        elapsed = time.perf_counter() - started
    return {"samples": samples, "seconds": elapsed}
