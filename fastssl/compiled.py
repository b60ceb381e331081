"""Python functions over arrays as machine code."""

from __future__ import annotations

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
