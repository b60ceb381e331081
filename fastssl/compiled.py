"""Python functions over arrays as machine code."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from fastssl.faults import was_importing

log = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function compiled at its first call on a machine, and kept in a file from then on.

    Where no folder takes that file, or what is in it is damaged, it is compiled in each process.
    It may call others of its own folder and of `fastssl.tile`, a change of which has it compiled anew, and of no other.
    It runs outside the interpreter lock. Division by zero gives what it does in NumPy. As a decorator it loads Numba
    together with the module, which takes half a second; where only some should wait for that, it is called in place.
    """
    return cast("_Function", _compiled(function))


def kernel(function: _Function) -> _Function:
    """A function as of `compiled`, for inner ones: it makes no arrays and only borrows those that it is given.

    Numba counts references: of each array that a function takes, of each slice, by an instruction for which the
    processor waits as long as for a vector or two. In a kernel it counts none.
    """
    return cast("_Function", _compiled(function, _nrt=False))


def inlined(function: _Function) -> _Function:
    """A kernel that becomes part of its callers."""
    return cast("_Function", _compiled(function, _nrt=False, forceinline=True))


@cache
def _compiled(function: Callable[..., object], **options: Any) -> object:
    from numba import njit

    dispatcher: Any = njit(nogil=True, error_model="numpy", **options)(function)
    try:
        dispatcher._cache = _forgiving_cache()(function)
    except (RuntimeError, OSError) as error:  # Numba found no folder that can be written to
        _tell_once(error)
    return dispatcher


@cache
def _forgiving_cache() -> Any:
    """Numba's cache, whose file may be torn, unreadable or impossible to write; its own lets the call fail then.

    A function that is in it needs Numba's runtime. Numba's own would load all that it needs to compile one, which takes
    0.09 s instead of 0.02; where one has to be compiled, that is loaded then.
    """
    from numba.core.caching import FunctionCache
    from numba.core.runtime.nrt import rtsys

    class ForgivingCache(FunctionCache):
        def __init__(self, function: Callable[..., object]) -> None:
            super().__init__(function)
            self._cache_file._source_stamp = _stamp(Path(function.__code__.co_filename).parent)

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                rtsys.initialize(target_context)
                with self._guard_against_spurious_io_errors():
                    return self._load_overload(sig, target_context)
            except Exception as error:  # unpickling what is torn raises nearly anything
                _pass_over(error)
                return None

        def save_overload(self, *arguments: Any) -> None:
            try:
                super().save_overload(*arguments)
            except Exception as error:  # it begins by reading what is there
                _pass_over(error)
                self._start_anew()

        def _start_anew(self) -> None:
            try:
                self.flush()
            except OSError as error:
                _tell_once(error)

    return ForgivingCache


@cache
def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """State of all modules that a function of a folder may call: it is kept with them, and Numba's own looks at one."""
    paths = [*sorted(folder.glob("*.py")), Path(__file__).with_name("tile.py")]
    found = [(path.name, path.stat()) for path in paths]
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)


@cache
def _told() -> list[str]:
    return []


def _pass_over(error: Exception) -> None:
    """Go on without the cache, unless Numba itself could not be loaded: what is left of it fails in other ways.

    A module that does not exist is what a torn file names.
    """
    if was_importing(error) and not isinstance(error, ModuleNotFoundError):
        raise error
    _tell_once(error)


def _tell_once(error: Exception) -> None:
    if not _told():
        _told().append(str(error))
        log.info(
            "compiled functions cannot be kept, so each process compiles them anew: %s "
            "(NUMBA_CACHE_DIR may name a folder that can be written to)",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )


def load_compiler() -> None:
    """Load what compiled functions need once they are kept, except for what they never use.

    For processes that do nothing else. Numba looks for SciPy, which multiplies its matrices, and for cffi, and so loads
    both: 0.12 s of 0.39. What it makes itself stays until the end, so it is never searched for garbage, which takes
    0.09 s while Numba is loaded.
    """
    modules: dict[str, object] = cast("dict[str, object]", sys.modules)
    hidden = {"scipy", "cffi"} - modules.keys()
    gc.disable()
    try:
        modules.update(dict.fromkeys(hidden))  # importing these is an error, which Numba is prepared for
        context = importlib.import_module("numba.core.registry").cpu_target.target_context
        importlib.import_module("numba.core.runtime.nrt").rtsys.initialize(context)
        importlib.import_module("numba.np.arraymath")  # home of functions that ours call; it is what looks for SciPy
    finally:
        for name in hidden:
            del modules[name]
        gc.freeze()
        gc.enable()
