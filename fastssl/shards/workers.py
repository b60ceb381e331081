"""Tasks done side by side, by processes of this machine or by a Ray cluster, their results in order.

Only a bounded number of tasks is under way, so memory does not grow with their number.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.util import Finalize
from typing import Any, TypeVar

from fastssl.compiled import load_compiler
from fastssl.errors import DeviceError, FastsslError, UsageError

T = TypeVar("T")
R = TypeVar("R")

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 28


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
    # Spawned, because a fork would copy whatever threads and locks the caller holds.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DeviceError(
            "a worker process ended unexpectedly",
            seen="it was killed, or ran out of memory",
            do="use fewer workers, and continue with --resume",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent lets the workers finish their tasks and stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_freed_memory()
    load_compiler()
    # The last thing that a worker does. Python would go on to free one by one what Numba holds, and the parent wait.
    Finalize(None, _end_worker, exitpriority=-100)


def _end_worker() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _keep_freed_memory() -> None:
    """Let glibc give arrays of a megabyte from memory that it keeps, instead of new pages from the system each time.

    The system clears every page, which took a tenth of a packing's time. Where the C library has no such setting,
    nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(setting, _KEPT_BYTES)


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
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed", do="pip install 'fastssl[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError("no Ray cluster answers", where=address, seen=str(error)) from error
    return ray


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FastsslError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise DeviceError("a Ray worker was lost", seen=str(error), do="continue with --resume") from error


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
