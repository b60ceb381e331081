"""Numbers that the tables of a frame and the loops over its scan share."""

from __future__ import annotations

import numpy as np

LANES = 16
"""Blocks that are transformed side by side, a lane of a vector each."""
BLOCK = 65 * LANES
"""Coefficients of so many blocks: 64 places, and one for what lies behind a block's last, a lane of each block."""
LOOKED_AT = 10
"""Bits of the scan that are looked up at once: most symbols with their value, and often two of them."""
WHOLE_CODE = 16
"""Bits of the longest code."""
END_OF_BLOCK = 128
"""Step to behind the block's last coefficient, to where no other step leads."""
NO_CODE = 64
"""Step of bits that are no code: behind the block's last coefficient, and before the end of a sound block."""
UNFINISHED = 128
"""Mark of an entry that does not hold its symbol's value: that has more bits than are looked at."""


def _turn(place: int) -> tuple[int, int]:
    """Diagonals one after the other, the odd ones downwards and the even ones upwards."""
    row, column = divmod(place, 8)
    return row + column, row if (row + column) % 2 else column


NATURAL_ORDER = np.array(sorted(range(64), key=_turn))
"""(64,) place in rows of each coefficient of a scan (T.81, figure A.6)."""
