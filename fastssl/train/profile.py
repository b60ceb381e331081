"""A trace of some steps, as Perfetto (ui.perfetto.dev) and chrome://tracing open it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from fastssl.errors import MachineError
from fastssl.faults import machine_faults_named
from fastssl.files import complete_or_absent
from fastssl.ranges import traced

log = logging.getLogger(__name__)

_TRACE = "trace.json"
_FIRST, _LAST = 10, 15
"""Steps of a session that are traced: libraries try their kernels in those before. Each has about a megabyte."""


class Trace:
    """What the processor's threads, the loader's among them, and a GPU do in some steps.

    Args:
        run: the run folder, which gets the trace.
        step: the last one that is made already.
        total: the last one of the run; where it has fewer steps than are left out, the last ones are traced.
    """

    def __init__(self, run: Path, step: int, total: int) -> None:
        self._path = run / _TRACE
        self._last = min(step + _LAST, total)
        self._first = min(step + _FIRST, max(self._last - 1, step + 1))
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The block is step `number` of the run."""
        if number == self._first:
            activities = {ProfilerActivity.CPU} | (
                {ProfilerActivity.CUDA} if torch.cuda.is_available() else set[ProfilerActivity]()
            )
            config = _ExperimentalConfig(profile_all_threads=True)
            self._profile = profile(activities=activities, experimental_config=config, acc_events=True)
            self._profile.start()
        with traced(f"step {number}"):
            yield
        if number == self._last:
            self.close()

    def close(self) -> None:
        """Write what was traced; a disk that is full costs the trace alone."""
        taken, self._profile = self._profile, None
        if taken is None:
            return
        taken.stop()
        try:
            with machine_faults_named(self._path), tempfile.TemporaryDirectory() as folder:
                plain = Path(folder) / "trace.json"
                taken.export_chrome_trace(str(plain))
                with plain.open("rb") as content, complete_or_absent(self._path) as file:
                    shutil.copyfileobj(content, file)
        except MachineError as error:
            log.warning("the trace could not be written, and the training goes on: %s (%s)", error.what, self._path)
            return
        log.info("%s holds the trace of steps %d to %d: open it at ui.perfetto.dev",
                 self._path, self._first, self._last)  # fmt: skip
