"""Oracle: NumPy's own copy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastssl.compiled import compiled
from fastssl.loader.past_cache import copy_past, finish_stores


def copy(source: NDArray[np.float32], out: NDArray[np.float32], start: int, stop: int) -> None:
    copy_past(source, out, start, stop)
    finish_stores()


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 63, 100])
def test_every_place_gets_its_number_and_no_other_changes(length: int) -> None:
    """Wherever a line of the cache begins, and wherever it ends."""
    source = np.random.default_rng(0).random(128).astype(np.float32)
    for first in range(20):
        for start in range(20):
            out = np.zeros(200, np.float32)[first:]
            compiled(copy)(source, out, start, start + length)
            expected = np.zeros_like(out)
            expected[start : start + length] = source[:length]
            np.testing.assert_array_equal(out, expected)
