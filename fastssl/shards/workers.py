"""Tasks done side by side, by processes of this machine or by a Ray cluster, their results in order.

Only a bounded number of tasks is under way, so memory does not grow with their number.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, TypeVar

from fastssl.compiled import load_compiler
from fastssl.errors import DeviceError, FastsslError, MachineError, UsageError
from fastssl.faults import machine_error
from fastssl.native import keep_freed_memory

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

_NO_GUARD = 78
"""Exit code of a worker that would have run its script's calls again."""
_ANSWER_S = 10
"""Patience until a Ray cluster's port is reached."""


def in_order(
    work: Callable[[T], R], tasks: Iterable[T], *, workers: int = 1, ray: str | None = None
) -> Generator[R, None, None]:
    """Results of `work` for each task, in the order of the tasks.

    When the generator is closed (an error, Ctrl-C), what has begun is finished and nothing more begins.

    Args:
        work: pickles, and so do tasks and results.
        tasks: taken ahead of need, two per worker.
        workers: processes on this machine; 1 = this process.
        ray: address of a Ray cluster that does the work instead; its CPUs set the number of workers.

    Raises:
        DeviceError: a worker died; the tasks whose results came out are done.
        UsageError: Ray is not installed, or no cluster answers.
    """
    if ray is not None:
        return _by_ray(work, tasks, ray)
    return (work(task) for task in tasks) if workers == 1 else _by_processes(work, tasks, workers)


def _by_processes(work: Callable[[T], R], tasks: Iterable[T], workers: int) -> Generator[R, None, None]:
    pending: deque[Future[R]] = deque()
    with worker_pool(workers, _begin_packing_worker) as pool:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def worker_pool(workers: int, initializer: Callable[..., None], *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """Processes that work side by side; at the end of the block, what has begun is finished and nothing more begins.

    Args:
        initializer: called with the arguments in each process first; it calls `begin_worker`.

    Raises:
        MachineError: the system does not let processes work together.
        DeviceError: one of them ended.
        UsageError: this process is such a worker itself, begun anew by a script without a guard.
    """
    check_main_guard()
    try:
        # Spawned, because a fork would copy whatever threads and locks the caller holds.
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=partial(initializer, *arguments)
        )
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise machine_error(error, "worker processes cannot be started") from error
        raise MachineError(
            "worker processes cannot be started side by side",
            where="/dev/shm",
            seen=error.strerror or str(error),
            expected="shared memory that can be written to",
            hint="mount it (for a container: --shm-size), or use --workers 1",
        ) from error
    processes = pool._processes
    try:
        yield pool
    except BrokenProcessPool as error:
        pool.shutdown()
        raise _ended([process.exitcode for process in processes.values()]) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ended(codes: list[int | None]) -> FastsslError:
    """The error for workers that ended too soon, from the exit codes of all."""
    if _NO_GUARD in codes:
        return UsageError(
            "the script starts itself again in each worker process",
            hint='put the call under  if __name__ == "__main__":  in the script, or use workers=1',
        )
    # The pool itself ends the others by SIGTERM.
    code = next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None)
    seen = (
        "it could not start, or an exception ended it; what it said stands above" if code == 1 else f"exit code {code}"
    )
    if code is not None and code < 0:
        seen = f"it was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        seen += ", which is what the system does when memory runs out"
    return DeviceError(
        "a worker process ended unexpectedly", seen=seen, hint="use fewer workers, and continue with --resume"
    )


def check_main_guard() -> None:
    """End this process if it is a worker that is still being made, and runs its script's calls because nothing guards
    them; the parent's error says so.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_NO_GUARD)


def begin_worker() -> None:
    """Prepare this worker process; to be called first."""
    # Ctrl-C reaches every process of the terminal; the parent lets the workers finish their tasks and stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    """Let this process be killed when its parent is gone, whatever killed it; nobody else would end it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="fastssl-parent", daemon=True).start()


def _begin_packing_worker() -> None:
    begin_worker()
    keep_freed_memory()
    load_compiler()
    # The last thing that a worker does. Python would go on to free one by one what Numba holds, and the parent wait.
    Finalize(None, _end_worker, exitpriority=-100)


def _end_worker() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _by_ray(work: Callable[[T], R], tasks: Iterable[T], address: str) -> Generator[R, None, None]:
    ray = _cluster(address)
    remote = ray.remote(max_retries=3)(_apply)
    shared = ray.put(work)
    num_pending = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    try:
        for task in tasks:
            pending.append(remote.remote(shared, task))
            if len(pending) == num_pending:
                yield _result(ray, pending.popleft())
        while pending:
            yield _result(ray, pending.popleft())
    finally:
        for task_reference in pending:
            ray.cancel(task_reference)
        ray.shutdown()


def _apply(work: Callable[[T], R], task: T) -> R:
    return work(task)


def _cluster(address: str) -> Any:
    _check_answer(address)
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed", hint="pip install 'fastssl[ray]'") from error
    log.info("joining the Ray cluster %s", address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError("no Ray cluster answers", where=address, seen=str(error)) from error
    return ray


def _check_answer(address: str) -> None:
    """Try to reach the address for some seconds; Ray itself would try for a quarter of an hour."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if not (separator and port.isdecimal()):
        return  # Ray has words of its own for the cluster, such as auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError("no Ray cluster answers", where=address, seen=str(error)) from error


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FastsslError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise DeviceError("a Ray worker was lost", seen=str(error), hint="continue with --resume") from error


def numbered_chunks(items: Iterator[T], size: int) -> Iterator[tuple[int, list[T]]]:
    """Lists of `size` items, the last one shorter, and their numbers."""
    number, chunk = 0, list[T]()
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield number, chunk
            number, chunk = number + 1, []
    if chunk:
        yield number, chunk
