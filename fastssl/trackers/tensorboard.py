"""TensorBoard."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

log = logging.getLogger(__name__)


class TensorBoard:
    """Events in the run folder, as TensorBoard reads them.

    Written in the caller's thread: the thread of TensorBoard's own writer dies of a full disk with a traceback, and
    takes the caller along at some later step.
    """

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"
    identity: ClassVar[None] = None

    def __init__(self, run: Path, settings: Mapping[str, object], first_step: int, known: str | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run / "tensorboard"
        seconds, rest = divmod(time.time_ns(), 10**9)
        self._path = folder / f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{rest:09d}"
        self._records: Any = None
        try:
            folder.mkdir(exist_ok=True)
            is_continued = any(folder.iterdir())
            self._records = RecordWriter(self._path.open("xb"))
        except OSError as error:
            self._give_up(error)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if first_step or (self._records is not None and is_continued):
            # What an interrupted process wrote of later steps is not shown.
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=first_step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=numbers)))

    def close(self) -> None:
        self._attempt(lambda: self._records.close())
        self._records = None

    def _add(self, event: Any) -> None:
        self._attempt(lambda: (self._records.write(event.SerializeToString()), self._records.flush()))

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._records is None:
            return
        try:
            action()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self._records is not None:
            with suppress(OSError):  # the same again, for what was not yet written
                self._records.close()
        self._records = None
        reason = error.strerror or error
        log.warning("%s: %s; the run goes on without TensorBoard events, metrics.jsonl has all", self._path, reason)
