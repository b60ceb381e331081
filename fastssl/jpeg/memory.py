"""Bytes at an address, for compiled functions; nobody looks whether they may be read.

Eight at once are one instruction here, where the compiler would load and shift each by itself.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _byte_at(_: Any, address: Any) -> Any:
    return types.uint8(address), lambda context, builder, signature, arguments: _load(builder, arguments[0], 8)


def _word_at(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(_load(builder, arguments[0], 64))

    return types.uint64(address), generate


def _load(builder: Any, address: Any, bits: int) -> Any:
    return builder.load(builder.inttoptr(address, ir.IntType(bits).as_pointer()), align=1)


byte_at: Any = intrinsic(_byte_at)
"""``byte_at(address)``: the byte there, a uint8."""
word_at: Any = intrinsic(_word_at)
"""``word_at(address)``: the eight bytes from there on as a uint64, the first of them highest."""
