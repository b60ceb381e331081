"""Errors of the commands as messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from fastssl.cli.output import say
from fastssl.errors import DataError, FastsslError, MachineError
from fastssl.extras import extra_needed
from fastssl.faults import machine_error, machine_fault, machine_faults_named, memory_is_short

_BROKEN_PIPE = 141
"""Exit code of a command whose reader has gone, as the shell has it for one that SIGPIPE ended."""


_PATHS = {
    errno.ENAMETOOLONG: ("a name is longer than the file system allows", "choose a shorter one"),
    errno.ENOENT: ("a file or a folder is missing", "bring it back"),
    errno.ELOOP: ("links lead in a circle", "remove them"),
}


class Commands(TyperGroup):
    """The commands, whose errors become messages and exit codes."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with errors_told():  # of --help and --version, which are answered here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with errors_told():
            return super().invoke(ctx)


@contextmanager
def errors_told() -> Iterator[None]:
    """The one place where errors become messages and exit codes, whichever command they come from."""
    try:
        with _written_out():
            yield
    except typer.Exit:
        raise
    except (Exception, SystemExit) as error:  # Rich ends the process so, its help text half printed
        if isinstance(error, BrokenPipeError) or isinstance(error.__cause__ or error.__context__, BrokenPipeError):
            _end_quietly()
        told = _as_ours(error)
        if told is None:
            raise
        _end(told)


def _as_ours(error: BaseException) -> FastsslError | None:
    """The error that tells of it; None for what is no fault of the user, of a dataset or of the machine."""
    if isinstance(error, FastsslError):
        # A dataset is not bad because a disk fails.
        is_machines = isinstance(error, DataError) and machine_fault(error) is not None
        return machine_error(error) if is_machines else error
    if isinstance(error, ImportError):
        return _unloadable(error)
    if isinstance(error, Exception) and machine_fault(error) is not None:
        return machine_error(error)
    if isinstance(error, Exception) and memory_is_short():
        return machine_error(MemoryError(f"{type(error).__name__}: {error}"))
    return _in_the_way(error) if isinstance(error, OSError) and error.filename is not None else None


@contextmanager
def _written_out() -> Iterator[None]:
    """All that the block prints is out, or an error says why not; an error of the block itself comes first."""
    try:
        yield
    except typer.Exit:
        _flush()
        raise
    _flush()


def _flush() -> None:
    with machine_faults_named("stdout"):
        sys.stdout.flush()


def _end(error: FastsslError) -> NoReturn:
    _drop_stdout()
    if not error.is_told:
        say(f"error: {error}")
    sys.exit(error.exit_code)


def _in_the_way(error: OSError) -> FastsslError:
    """The error for a path that cannot be, as where a folder lies in the place of a file."""
    what, cure = _PATHS.get(error.errno or 0, ("something of another kind stands in the way", "move it away"))
    return DataError(what, where=os.fsdecode(error.filename), seen=error.strerror, hint=f"{cure}, then try again")


def _unloadable(error: ImportError) -> FastsslError:
    """The error for a module that cannot be loaded; one whose files cannot be looked at seems not to be there."""
    if (needed := extra_needed(error)) is not None:
        return needed
    if machine_fault(error) is not None:
        return machine_error(error, "a package cannot be loaded")
    return MachineError(
        "a package cannot be loaded",
        where=error.name or error.path,
        seen=str(error),
        hint="see whether its files can be read, or install fastssl again",
    )


def _end_quietly() -> NoReturn:
    _drop_stdout()
    sys.exit(_BROKEN_PIPE)


def _drop_stdout() -> None:
    """Write out what stdout still holds; where that fails, let it go, or Python would try again and fail at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
