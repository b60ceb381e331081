"""Batches that are used and dropped early and late, on the CPU; `tests/gpu/test_lifetimes.py` is the same on a GPU."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from late_reading import KEPT, STEPS, begin, calm, late
from memory_in_use import assert_iterators_can_be_dropped, assert_training_takes_no_more
from patterns import SIDE

from fastssl.loader import LoaderOptions, images, pipeline
from fastssl.loader.memory import Memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("targets", [True, False])
def test_batches_are_the_same_whenever_they_are_dropped(coded_synthetic: Path, targets: bool, kept: int) -> None:
    options = LoaderOptions(device=CPU, threads=2)
    expected = calm(begin(coded_synthetic, options, targets=targets), CPU)
    assert len({tuple(digest.tolist()) for digest in expected}) == STEPS
    assert torch.equal(late(begin(coded_synthetic, options, targets=targets), CPU, kept), expected)


@pytest.mark.parametrize("targets", [True, False])
def test_the_memory_of_images_goes_with_their_batch(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch, targets: bool
) -> None:
    """And not when the next one is asked for."""
    lent = list[weakref.ref[Any]]()

    def watched(output: Any) -> torch.Tensor:
        memory = np.array(output)
        lent.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    monkeypatch.setattr(pipeline, "from_dlpack", watched)
    batches = begin(coded_synthetic, LoaderOptions(device=CPU, threads=2), targets=targets)
    for number in range(3):
        batch = next(batches)
        assert lent[number]() is not None
        del batch
        assert lent[number]() is None


def test_the_memory_of_images_that_are_only_cut_goes_with_their_batch(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code makes these, a batch ahead."""
    lent = list[weakref.ref[Any]]()

    class Watched(Memory):
        def lend(self, num_bytes: int) -> Any:
            memory = super().lend(num_bytes)
            lent.append(weakref.ref(memory))
            return memory

    monkeypatch.setattr(images, "Memory", Watched)
    options = LoaderOptions(device=CPU, threads=2)
    batches = begin(coded_synthetic, options, targets=False, window=(115 / SIDE, 115 / SIDE))
    for number in range(3):
        batch = next(batches)
        assert lent[number]() is not None
        del batch
        assert lent[number]() is None


def test_training_takes_no_more_memory_later(coded_synthetic: Path, coded_real: Path) -> None:
    assert_training_takes_no_more(coded_synthetic, coded_real, CPU, 10, 30)


def test_iterators_are_dropped_after_their_first_batch(coded_synthetic: Path) -> None:
    assert_iterators_can_be_dropped(coded_synthetic, CPU, 24, room=2**25)
