"""Tiles against NumPy's transposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastssl.compiled import compiled
from fastssl.tile import TILE, turn_tile


def turned(rows: Any, pixel: Any, columns: Any) -> None:
    step, out_step = np.uint64(rows.strides[0]), np.uint64(columns.strides[0])
    turn_tile(rows.ctypes.data, step, columns.ctypes.data, out_step, pixel)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_rows_become_columns_and_nothing_else_is_written(size: int) -> None:
    rows = np.random.default_rng(size).integers(0, 200, (TILE, TILE + 3, size), np.uint8)
    columns = np.full((TILE, TILE + 5, size), 255, np.uint8)
    compiled(turned)(rows.reshape(TILE, -1), (0,) * size, columns.reshape(TILE, -1))
    np.testing.assert_array_equal(columns[:, :TILE], rows[:, :TILE].transpose(1, 0, 2))
    assert (columns[:, TILE:] == 255).all()
