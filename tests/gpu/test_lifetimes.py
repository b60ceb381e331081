"""No batch is overwritten before it is used: batches read late and without a wait equal those that are waited for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from late_reading import KEPT, STEPS, begin, calm, digest, late, slow_kernels
from memory_in_use import assert_iterators_can_be_dropped, assert_training_takes_no_more
from nobody_waits import nobody_waits
from patterns import SIDE

from fastssl.errors import UsageError
from fastssl.loader import LoaderOptions, Maker

WINDOWS = ((0.6, 1.0), (115 / SIDE, 115 / SIDE))
"""Resampled, and only cut out of images, of which the CPU's threads make it without a graph."""


@pytest.fixture(params=["cpu", "gpu"])
def load_on(request: pytest.FixtureRequest) -> Maker:
    maker: Maker = request.param
    return maker


@pytest.fixture
def options(gpu: torch.device, load_on: Maker) -> LoaderOptions:
    return LoaderOptions(device=gpu, load_on=load_on, threads=4)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("window", WINDOWS)
def test_late_batches_equal_calm_ones(
    coded_synthetic: Path,
    gpu: torch.device,
    options: LoaderOptions,
    kept: int,
    targets: bool,
    half: bool,
    window: tuple[float, float],
) -> None:
    if options.load_on == "gpu" and window != WINDOWS[0]:
        pytest.skip("the GPU's graph is the same")
    options = replace(options, half=half)
    expected = calm(begin(coded_synthetic, options, targets=targets, window=window), gpu)
    assert len({tuple(digest.tolist()) for digest in expected}) == STEPS
    for _ in range(3):
        found = late(begin(coded_synthetic, options, targets=targets, window=window), gpu, kept)
        assert torch.equal(found, expected)


def test_late_batches_equal_calm_ones_on_a_stream_of_the_consumers_own(
    coded_synthetic: Path, gpu: torch.device, options: LoaderOptions
) -> None:
    expected = calm(begin(coded_synthetic, options, targets=True), gpu)
    own = torch.cuda.Stream(gpu)
    with torch.cuda.stream(own):
        found = late(begin(coded_synthetic, options, targets=True), gpu, kept=0)
    own.synchronize()
    assert torch.equal(found, expected)


def test_another_stream_is_refused(coded_synthetic: Path, gpu: torch.device, options: LoaderOptions) -> None:
    batches = begin(coded_synthetic, options, targets=True)
    next(batches)
    with torch.cuda.stream(torch.cuda.Stream(gpu)), pytest.raises(UsageError, match="another CUDA stream"):
        next(batches)


def test_asking_for_a_batch_does_not_wait_for_the_network(
    coded_synthetic: Path, gpu: torch.device, options: LoaderOptions
) -> None:
    """While the steps before are still to run, the host already has the next batch."""
    batches = begin(coded_synthetic, options, targets=True)
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
    coded_synthetic: Path, gpu: torch.device, options: LoaderOptions, targets: bool, normal_filter: str
) -> None:
    """As far as torch can tell: targets are made, classes copied and batches handed over without a wait of its."""
    batches = begin(coded_synthetic, options, targets=targets, normal_filter=normal_filter)
    for _ in range(3):
        next(batches)
    with nobody_waits(gpu):
        next(batches)


@pytest.mark.alone
def test_training_takes_no_more_memory_after_300_steps_than_after_50(
    coded_synthetic: Path, coded_real: Path, gpu: torch.device, load_on: Maker
) -> None:
    assert_training_takes_no_more(coded_synthetic, coded_real, gpu, 50, 300, load_on)


@pytest.mark.alone
@pytest.mark.timeout(240)  # beginning to decode on a GPU takes 1.75 s a time, and more beside other tests
def test_twenty_iterators_are_dropped_with_work_in_flight(
    coded_synthetic: Path, gpu: torch.device, load_on: Maker
) -> None:
    assert_iterators_can_be_dropped(coded_synthetic, gpu, 20, load_on=load_on)


def test_memory_is_lent_again_only_when_it_has_been_copied(coded_synthetic: Path, gpu: torch.device) -> None:
    """The GPU is kept so busy that copies are still to come when the host has long dropped what they copy."""
    options = LoaderOptions(device=gpu, threads=4)
    expected = calm(begin(coded_synthetic, options, targets=True, window=WINDOWS[1]), gpu)
    batches, slow, digests = begin(coded_synthetic, options, targets=True, window=WINDOWS[1]), slow_kernels(gpu), []
    for _ in range(STEPS):
        batch = next(batches)
        slow()
        digests.append(digest(batch))
        del batch
    torch.cuda.synchronize(gpu)
    assert torch.equal(torch.stack(digests), expected)
