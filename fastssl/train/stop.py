"""Signals that ask a training to stop, and what it does about them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fastssl.errors import FastsslError

log = logging.getLogger(__name__)

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, an administrator, a terminal that goes away, and a cluster before its time limit."""


class Stopped(FastsslError):  # noqa: N818 - it is no error
    """A training that ended early because a signal asked for it; `--resume` continues it.

    Its exit code is 130 after Ctrl-C, as of any command, and 0 otherwise: a scheduler that asked for it was obeyed.
    """

    def __init__(self, by: signal.Signals, step: int | None) -> None:
        done = "before its first step" if step is None else f"after step {step}, of which there is a checkpoint"
        super().__init__(f"stopped by {by.name} {done}", hint="--resume continues it")
        self.by, self.step = by, step
        # A ClassVar of errors, whose kind decides; here the signal does, which mypy cannot know.
        self.exit_code = 130 if by is signal.SIGINT else 0  # type: ignore[misc]

    def __reduce__(self) -> tuple[object, ...]:
        return (Stopped, (self.by, self.step))


class _Now(BaseException):
    """Unwinds what stands on the stack when a signal comes; no handler of errors may take it for one."""


class StopSignals:
    """The signals that have come so far.

    Until `deferred` is entered a signal ends the work at once, for there is nothing to save; inside of it a signal is
    noted, and the trainer looks at `wanted` after every step. A second Ctrl-C ends the process as it would any other.
    """

    def __init__(self) -> None:
        self.wanted: signal.Signals | None = None
        self._is_deferred = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Signals are taken note of, in the main thread; those that were ignored before, as by nohup, stay ignored.

        Raises:
            Stopped: one came before there was anything to save.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _ASKING}
        taken = [number for number in _ASKING if before[number] is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, self._note)
        try:
            yield
        except _Now:
            assert self.wanted is not None
            raise Stopped(self.wanted, None) from None
        finally:
            for number in taken:
                signal.signal(number, before[number])

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals are noted and end nothing."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _note(self, number: int, _: FrameType | None) -> None:
        found = signal.Signals(number)
        if self.wanted is not None:
            if found is signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.wanted = found
        if not self._is_deferred:
            raise _Now
        log.info("%s: the training stops after this step, with a checkpoint", found.name)
