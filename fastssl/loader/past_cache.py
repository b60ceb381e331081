"""Stores to memory that nobody reads soon, past the cache, for compiled functions.

An ordinary store first fetches the line that it changes. A batch is larger than the cache and written from end to end,
so that would be half of what the memory has to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastssl.compiled import inlined

_VECTOR = 16
"""Numbers of a store: a line of the cache, which only whole lines go past."""


def _store(_: Any, source: Any, place: Any, out: Any, start: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def vector(k: int) -> Any:
            data = context.make_array(signature.args[k])(context, builder, arguments[k]).data
            number = ir.VectorType(ir.FloatType(), _VECTOR)
            return builder.bitcast(builder.gep(data, [arguments[k + 1]]), number.as_pointer())

        store = builder.store(builder.load(vector(0), align=4), vector(2), align=4 * _VECTOR)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(source, place, out, start), generate


def _finish(_: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


_store_past: Any = intrinsic(_store)
"""``_store_past(source, place, out, start)``: copy a vector of float32 to where a line of the cache begins."""
finish_stores: Any = intrinsic(_finish)
"""``finish_stores()``: let others see what went past the cache before all that this thread does next."""


@inlined
def copy_past(source: NDArray[np.float32], out: NDArray[np.float32], start: int, stop: int) -> None:
    """Copy the first numbers of an array to those of `out` from `start` to `stop`; `finish_stores` is to be called."""
    first, last, size = np.uintp(start), np.uintp(stop), np.uintp(_VECTOR)
    place = first
    while place < last and (np.uintp(out.ctypes.data) // np.uintp(4) + place) % size != np.uintp(0):
        out[place] = source[place - first]
        place += np.uintp(1)
    while place + size <= last:
        _store_past(source, place - first, out, place)
        place += size
    while place < last:
        out[place] = source[place - first]
        place += np.uintp(1)
