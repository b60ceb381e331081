"""Python functions over arrays as machine code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function compiled at its first call on a machine, and kept in a file from then on.

    It runs outside the interpreter lock. Division by zero gives what it does in NumPy. As a decorator it loads Numba
    together with the module, which takes half a second; where only some should wait for that, it is called in place.
    """
    return cast("_Function", _compiled(function))


@cache
def _compiled(function: Callable[..., object]) -> object:
    from numba import njit

    return njit(nogil=True, cache=True, error_model="numpy")(function)


def load_compiler() -> None:
    """Load what compiled functions need, except for what they never use; for processes that do nothing else.

    Numba looks for SciPy, which multiplies its matrices, and so loads it: a third of all the time that it takes.
    """
    modules: dict[str, object] = cast("dict[str, object]", sys.modules)
    if "scipy" not in modules:
        modules["scipy"] = None  # importing it is an error, which Numba is prepared for
        try:
            importlib.import_module("numba.np.arraymath")
        finally:
            del modules["scipy"]
