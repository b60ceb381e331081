"""Faults of the machine, told apart from faults of a file.

A network file system that hangs, a full disk, too many open files or a lack of memory says nothing about the file that
was being read. So only what the bytes of a file say may count against it. Whoever reads raises its own error `from`
what it met, and this module alone judges, by the chain of causes, whose fault it was.
"""

from __future__ import annotations

import errno
import gc
import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from traceback import walk_tb
from typing import TypeVar

from fastssl.errors import FastsslError, MachineError

T = TypeVar("T")

log = logging.getLogger(__name__)

_PAUSES_S = (0.1, 0.5, 2.5)
"""Waits between two tries; one try more than there are waits."""

_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EEXIST}
"""Answers about a path that are as true tomorrow: it is not there, or is of another kind."""
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOSYS, errno.EFBIG, errno.EPIPE}
"""Faults of the machine that another try would meet again."""

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "access is denied",
    errno.EPERM: "access is denied",
    errno.EMFILE: "this process has too many files open",
    errno.ENFILE: "the machine has too many files open",
    errno.ENOMEM: "out of memory",
    errno.EIO: "the file system reports an input/output error",
    errno.ESTALE: "the network file system lost a file (stale handle)",
    errno.EPIPE: "nobody reads the output any more",
    errno.ENOENT: "there is no folder for temporary files",
}
_DO = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a folder that can be written to, or mount it for writing",
    errno.EACCES: "give this user the right to use it, or take it out",
    errno.EPERM: "give this user the right to use it, or take it out",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOMEM: "use fewer workers, smaller batches, or a machine with more memory",
    errno.EIO: "see what the kernel's log says of the disk",
    errno.ESTALE: "see whether the file server answers, and mount it again",
    errno.ENOENT: "let TMPDIR name a folder that can be written to",
}

_PROBE_BYTES = 1 << 24

_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial$")
"""End of the temporary name of a file that is being written (`fastssl.files`), which nobody asked for."""

_HDF5 = re.compile(r"errno = (\d+)")
_MEMORY = re.compile(
    r"out of memory|insufficient memory|can't allocate memory|cannot allocate memory|bad.?alloc|can't start new thread"
    r"|Error -4 while|failed to map segment|not enough memory",
    re.IGNORECASE,
)
"""Ways in which libraries say that they got no memory: Pillow, libjpeg, torch, C++, Python's threads, zlib, ld.so."""


def machine_fault(error: BaseException) -> OSError | MemoryError | None:
    """The fault of the machine that led to an error; None if the error is about a file's content, or ours."""
    return next((fault for link in _chain(error) if (fault := _own_fault(link)) is not None), None)


def memory_is_short() -> bool:
    """The system gives no more memory, so that an error of any kind may be due to that, even of the interpreter's."""
    try:
        mmap.mmap(-1, _PROBE_BYTES).close()
    except (OSError, MemoryError):
        return True
    return False


def is_gone(error: BaseException) -> bool:
    """The error is about a path that leads nowhere, or to something of another kind.

    That may be true, or a hiccup of a network file system; only another look can tell.
    """
    return any(isinstance(link, OSError) and link.errno in _OF_THE_FILE for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what led to it."""
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _own_fault(error: BaseException) -> OSError | MemoryError | None:
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, FastsslError):
        return None  # its words may quote anything
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return None if error.errno in _OF_THE_FILE else error
    words = str(error)
    if isinstance(error, SystemError) and "without exception set" in words:
        return OSError(errno.ENOMEM, f"the interpreter itself failed: {words}")
    hdf5 = _HDF5.search(words) if isinstance(error, OSError) else None
    if hdf5 is not None and int(hdf5[1]) not in {0, *_OF_THE_FILE}:
        return OSError(int(hdf5[1]), os.strerror(int(hdf5[1])))
    if _MEMORY.search(words):
        return OSError(errno.ENOMEM, words.splitlines()[0])
    if isinstance(error, ImportError | RuntimeError):  # of the loader of shared libraries, which has only words
        told = {number for number in _WORDS.keys() - _OF_THE_FILE if f": {os.strerror(number)}" in words}
        return OSError(min(told), os.strerror(min(told))) if told else None
    return None


def was_importing(error: BaseException) -> bool:
    """A module was being loaded: what is left of it fails in other ways when it is loaded again."""
    return any(isinstance(link, ImportError) or _is_in_a_module(link) for link in _chain(error))


def _is_in_a_module(error: BaseException) -> bool:
    """The error was raised below the import system, or below the code of a module that it ran."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return any("importlib._bootstrap" in frame.f_code.co_filename for frame in frames) or any(
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__" for frame in frames
    )


def machine_error(
    error: BaseException,
    what: str | None = None,
    *,
    where: str | PathLike[str] | None = None,
    hint: str | None = None,
) -> MachineError:
    """The error that tells of a machine's fault.

    Args:
        error: one in which `machine_fault` finds a fault; an error of ours says what failed, and where.
        what: what failed because of it, such as "a file cannot be written".
        where: what was being read or written, if the error does not say it.
        hint: what to do besides mending the machine, such as continuing.
    """
    found = machine_fault(error)
    number = 0 if found is None else found.errno or 0 if isinstance(found, OSError) else errno.ENOMEM
    fault = found or error
    words, cure = _WORDS.get(number), _DO.get(number)
    if isinstance(error, FastsslError):
        what, where, cure = error.what, error.where or where, cure or error.hint
    named: str | bytes | None = getattr(fault, "filename", None)
    advice = [cure or "see to what the system says", *([hint] if hint else [])]
    return MachineError(
        ": ".join(part for part in (what, words) if part) or "the system refuses a call",
        where=where if where is not None else _PARTIAL.sub("", os.fsdecode(named)) if named else None,
        seen=(fault.strerror if isinstance(fault, OSError) else None) or str(fault) or type(fault).__name__,
        hint=", ".join(advice),
    )


@contextmanager
def machine_faults_named(where: str | PathLike[str] | None = None, *, hint: str | None = None) -> Iterator[None]:
    """Turn faults of the machine in the block into a `MachineError`; other errors pass.

    Raises:
        MachineError: see above.
    """
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        if machine_fault(error) is None:
            raise
        raise machine_error(error, where=where, hint=hint) from error


def patiently(action: Callable[[], T], *, where: str | PathLike[str], hint: str | None = None) -> T:
    """The result of an action; after a fault of the machine it is tried again, four times in all within 3 s.

    Raises:
        MachineError: the fault stays, or is of a kind that stays (no right, no room, a module half loaded).
        Exception: whatever else the action raises, at once.
    """
    pauses = iter(_PAUSES_S)
    while True:
        try:
            return action()
        except MachineError:
            raise
        except Exception as error:
            fault, pause = machine_fault(error), next(pauses, None)
            if fault is None:
                raise
            if pause is None or getattr(fault, "errno", None) in _LASTING or was_importing(error):
                raise machine_error(error, where=where, hint=hint) from error
            log.warning("%s: %s; it is tried again", where, machine_error(error).what)
        gc.collect()  # after the handler, which keeps the frames of the failed try alive
        time.sleep(pause)
