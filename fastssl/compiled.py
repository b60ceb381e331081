"""Python functions over arrays as machine code."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

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

    from fastssl.kept_code import KeptCode, tell_once

    dispatcher: Any = njit(nogil=True, error_model="numpy", **options)(function)
    try:
        dispatcher._cache = KeptCode(function)
    except (RuntimeError, OSError) as error:  # Numba found no folder that can be written to
        tell_once(error)
    return dispatcher


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
