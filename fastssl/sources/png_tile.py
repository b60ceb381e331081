"""Pixels of some rows as those of their columns, in vectors; nobody looks whether memory may be read and written."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE = 8
"""Rows, and pixels of each."""


def _turn_tile(_: Any, source: Any, source_step: Any, out: Any, out_step: Any, pixel: Any) -> Any:
    size = len(pixel)
    kind = ir.VectorType(ir.IntType(8), TILE * size)
    # The first half of each vector, and the second, pixels of the one and of the other in turns.
    halves = [
        ir.Constant(
            ir.VectorType(ir.IntType(32), TILE * size),
            [(half + place // 2 + TILE * (place % 2)) * size + byte for place in range(TILE) for byte in range(size)],
        )
        for half in (0, TILE // 2)
    ]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read, read_step, written, write_step, _ = arguments
        rows = []
        for _ in range(TILE):
            rows.append(builder.load(builder.inttoptr(read, kind.as_pointer()), align=1))
            read = builder.add(read, read_step)
        for _ in range(3):  # 8 = 2^3
            pairs = zip(rows[: TILE // 2], rows[TILE // 2 :], strict=True)
            rows = [builder.shuffle_vector(one, other, half) for one, other in pairs for half in halves]
        for row in rows:
            builder.store(row, builder.inttoptr(written, kind.as_pointer()), align=1)
            written = builder.add(written, write_step)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.uintp, pixel), generate


turn_tile: Any = intrinsic(_turn_tile)
"""``turn_tile(source, source_step, out, out_step, pixel)``: pixel j of row i at `source` becomes pixel i of row j.

The first and the third number are addresses of the first rows, the others what lies between two of them; `pixel` is a
tuple as long as a pixel. The rows at `out` are not those at `source`, not even in part.
"""
