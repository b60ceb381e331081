"""Tiles of pixels turned, so that rows become columns, by instructions for vectors.

Pixel by pixel a turn takes four to seven times as long. For compiled functions; nobody looks whether the memory may be
read and written.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE = 8
"""Rows of a tile, and pixels of each row."""


def _turn_tile(_: Any, source: Any, source_step: Any, out: Any, out_step: Any, pixel: Any) -> Any:
    row = ir.VectorType(ir.IntType(8), TILE * len(pixel))
    halves = [_in_turns(half, len(pixel)) for half in range(2)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read, read_step, written, write_step, _ = arguments
        rows = []
        for _ in range(TILE):
            rows.append(builder.load(builder.inttoptr(read, row.as_pointer()), align=1))
            read = builder.add(read, read_step)
        for _ in range(TILE.bit_length() - 1):
            pairs = zip(rows[: TILE // 2], rows[TILE // 2 :], strict=True)
            rows = [builder.shuffle_vector(one, other, half) for one, other in pairs for half in halves]
        for turned in rows:
            builder.store(turned, builder.inttoptr(written, row.as_pointer()), align=1)
            written = builder.add(written, write_step)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.uintp, pixel), generate


def _in_turns(half: int, size: int) -> ir.Constant:
    """Places of the bytes of two rows' first halves, or second halves, a pixel of the one and of the other in turns."""
    pixels = [TILE * row + TILE // 2 * half + x for x in range(TILE // 2) for row in range(2)]
    places = [size * pixel + byte for pixel in pixels for byte in range(size)]
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


turn_tile: Any = intrinsic(_turn_tile)
"""``turn_tile(source, source_step, out, out_step, pixel)``: pixel j of row i becomes pixel i of row j.

The first and the third number are addresses of the first row, the second and the fourth what lies between two rows;
`pixel` is a tuple of as many numbers as a pixel has bytes. No row at `out` lies in one at `source`.
"""
