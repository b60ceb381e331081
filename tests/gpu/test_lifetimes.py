"""No batch is overwritten before it is used: batches read late and without a wait equal those that are waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from late_reading import KEPT, STEPS, begin, calm, late, slow_kernels
from memory_in_use import assert_iterators_can_be_dropped, assert_training_takes_no_more
from nobody_waits import nobody_waits

from fastssl.errors import UsageError
from fastssl.loader import LoaderOptions


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_late_batches_equal_calm_ones(
    coded_synthetic: Path, gpu: torch.device, kept: int, targets: bool, half: bool
) -> None:
    options = LoaderOptions(device=gpu, threads=4, half=half)
    expected = calm(begin(coded_synthetic, options, targets=targets), gpu)
    assert len({tuple(digest.tolist()) for digest in expected}) == STEPS
    for _ in range(3):
        assert torch.equal(late(begin(coded_synthetic, options, targets=targets), gpu, kept), expected)


def test_late_batches_equal_calm_ones_on_a_stream_of_the_consumers_own(
    coded_synthetic: Path, gpu: torch.device
) -> None:
    options = LoaderOptions(device=gpu, threads=4)
    expected = calm(begin(coded_synthetic, options, targets=True), gpu)
    own = torch.cuda.Stream(gpu)
    with torch.cuda.stream(own):
        found = late(begin(coded_synthetic, options, targets=True), gpu, kept=0)
    own.synchronize()
    assert torch.equal(found, expected)


def test_another_stream_is_refused(coded_synthetic: Path, gpu: torch.device) -> None:
    batches = begin(coded_synthetic, LoaderOptions(device=gpu, threads=4), targets=True)
    next(batches)
    with torch.cuda.stream(torch.cuda.Stream(gpu)), pytest.raises(UsageError, match="another CUDA stream"):
        next(batches)


def test_asking_for_a_batch_does_not_wait_for_the_network(coded_synthetic: Path, gpu: torch.device) -> None:
    """While the steps before are still to run, the host already has the next batch."""
    batches = begin(coded_synthetic, LoaderOptions(device=gpu, threads=4), targets=True)
    slow = slow_kernels(gpu)
    for _ in range(4):
        next(batches)
    torch.cuda.synchronize(gpu)
    done = torch.cuda.Event()
    for _ in range(100):
        slow()
    done.record()
    next(batches)
    assert not done.query()


def test_a_wait_would_be_noticed(gpu: torch.device) -> None:
    number = torch.ones(1, device=gpu)
    with pytest.raises(RuntimeError, match="synchroniz"), nobody_waits(gpu):
        number.item()


@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize("normal_filter", ["nearest", "linear"])
def test_the_host_does_not_wait_for_a_batch(
    coded_synthetic: Path, gpu: torch.device, targets: bool, normal_filter: str
) -> None:
    """As far as torch can tell: targets are made, classes copied and batches handed over without a wait of its."""
    options = LoaderOptions(device=gpu, threads=4)
    batches = begin(coded_synthetic, options, targets=targets, normal_filter=normal_filter)
    for _ in range(3):
        next(batches)
    with nobody_waits(gpu):
        next(batches)


def test_training_takes_no_more_memory_after_300_steps_than_after_50(
    coded_synthetic: Path, coded_real: Path, gpu: torch.device
) -> None:
    assert_training_takes_no_more(coded_synthetic, coded_real, gpu, 50, 300)


def test_twenty_iterators_are_dropped_with_work_in_flight(coded_synthetic: Path, gpu: torch.device) -> None:
    assert_iterators_can_be_dropped(coded_synthetic, gpu, 20)
