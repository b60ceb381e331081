"""How fast a piece of work goes, over several stretches of time, and what it takes of the processor."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STRETCHES = 5
"""Of which a rate is the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many images a part of the work can do."""

    images_per_s: float
    """Median of the stretches."""
    stretches: tuple[float, ...]
    """Images per second of each."""
    core_ms: float
    """Processor time per image, of all threads of this process together, in milliseconds of one core."""

    @property
    def seconds(self) -> float:
        """Per image, by the clock."""
        return 1 / self.images_per_s


def measure(
    work: Callable[[], int], seconds: float, *, warm_up: int = 1, wait: Callable[[], None] | None = None
) -> Rate:
    """Do a piece of work over and over.

    Args:
        work: called again and again; returns for how many images it was.
        seconds: for all stretches together. Each takes one call at least, however long that is.
        warm_up: calls before the first stretch.
        wait: returns when all that `work` has begun is done; called at the end of each stretch.
    """
    wait = wait or _nothing
    for _ in range(warm_up):
        work()
    wait()
    rates, images = list[float](), 0
    processor = time.process_time()
    for _ in range(STRETCHES):
        started, done = time.perf_counter(), 0
        while not done or time.perf_counter() - started < seconds / STRETCHES:
            done += work()
        wait()
        rates.append(done / (time.perf_counter() - started))
        images += done
    core_ms = 1000 * (time.process_time() - processor) / images
    return Rate(images_per_s=statistics.median(rates), stretches=tuple(rates), core_ms=core_ms)


def _nothing() -> None:
    pass


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor_name() -> str:
    """Model of the processor, where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
