"""Batches that are used and dropped early and late, on the CPU; `tests/gpu/test_lifetimes.py` is the same on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from late_reading import KEPT, STEPS, begin, calm, late

from fastssl.loader import LoaderOptions

CPU = torch.device("cpu")


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("labels", [True, False])
def test_batches_are_the_same_whenever_they_are_dropped(coded_synthetic: Path, labels: bool, kept: int) -> None:
    options = LoaderOptions(device=CPU, threads=2)
    expected = calm(begin(coded_synthetic, options, labels=labels), CPU)
    assert len({tuple(digest.tolist()) for digest in expected}) == STEPS
    assert torch.equal(late(begin(coded_synthetic, options, labels=labels), CPU, kept), expected)
