"""Processes that tests begin: Ctrl-C reaches them wherever the tests run, and none outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_running: list[subprocess.Popen[str]] = []


def start(arguments: Sequence[object], **options: Any) -> subprocess.Popen[str]:
    """Begin a process in a session of its own; `options` are those of `Popen`.

    A shell lets its background jobs ignore SIGINT, `nohup` SIGHUP, and children inherit that, so both are set back.
    """

    def heed_signals() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in arguments],
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
        **options,
    )
    _running.append(process)
    return process


def end_all() -> None:
    """Kill whatever is left of the processes that were begun, and of what they began; close what they wrote into."""
    while _running:
        process = _running.pop()
        with suppress(ProcessLookupError):  # it has ended, and all that it began
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
