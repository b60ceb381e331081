"""Oracles: counting, and what a perfect shuffle would do."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.loader.order import MixedOrder, mixed_order

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 30), st.integers(0, 5))
def test_every_epoch_holds_each_sample_once(sizes: list[int], buffer: int, seed: int) -> None:
    num = sum(sizes)
    order = mixed_order([sizes], [1.0], seed=seed, stream=0, buffer=buffer)
    epochs = order.samples(0, 5 * num).reshape(5, num)
    assert (np.sort(epochs, axis=1) == np.arange(num)).all()


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 30), st.integers(0, 200), st.integers(1, 40))
def test_any_stretch_is_a_part_of_the_whole(sizes: list[int], buffer: int, first: int, count: int) -> None:
    order = mixed_order([sizes, [4, 4]], [0.3, 0.7], seed=1, stream=1, buffer=buffer)
    assert (order.samples(first, count) == order.samples(0, first + count)[first:]).all()


@pytest.mark.parametrize(
    ("sizes", "buffer", "digest"),
    [
        ([5] * 4, 0, "798813f528616c76"),
        ([3, 4, 5], 6, "389fbe57109186a7"),
        ([7, 300, 2], 0, "615db7364a63bf83"),
        ([70_000, 30_000], 0, "b431bb0ac7bb5252"),
    ],
)
def test_runs_that_began_with_an_earlier_version_go_on_with_its_order(
    sizes: list[int], buffer: int, digest: str
) -> None:
    """Digests of two epochs and a half, as made when an order was kept in 64 bits."""
    order = mixed_order([sizes], [1.0], seed=5, stream=1, buffer=buffer)
    samples = order.samples(0, 5 * order.num_samples // 2)
    assert samples.dtype == np.int64
    assert hashlib.sha256(samples.tobytes()).hexdigest()[:16] == digest


def test_memory_is_four_bytes_a_sample_at_the_border_of_two_epochs_too() -> None:
    """400,000 samples; a 64-bit permutation, or a second one beside it, would take twice as much."""
    order = mixed_order([[2000] * 200], [1.0], seed=0, stream=0)
    mixed_order([[4]], [1.0], seed=0, stream=0).samples(0, 9)  # what is loaded once
    tracemalloc.start()
    for first in range(0, 3 * 400_000 + 1, 100_000):
        order.samples(max(first - 32, 0), 64)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4 * 400_000 < kept < most < 4 * 400_000 + 200_000


WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(0, 10**7), st.integers(1, 500))
def test_each_dataset_keeps_its_fraction_in_any_stretch(weights: list[float], first: int, count: int) -> None:
    order = mixed_order([[3]] * len(weights), weights, seed=0, stream=0)
    dataset, _ = order.turns(first, count)
    counts = np.bincount(dataset, minlength=len(weights))
    exact = count * np.array(weights) / sum(weights)
    assert np.abs(counts - exact).max() <= max(1, len(weights) - 1) + 1e-6


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(0, 1000))
def test_no_position_of_a_dataset_is_left_out_or_comes_twice(weights: list[float], start: int) -> None:
    order = mixed_order([[3]] * len(weights), weights, seed=0, stream=0)
    dataset, position = order.turns(0, start + 300)
    for number in range(len(weights)):
        mine = position[dataset == number]
        assert mine.tolist() == list(range(len(mine)))
    again = order.turns(start, 300)
    assert (dataset[start:] == again[0]).all()
    assert (position[start:] == again[1]).all()


def test_orders_depend_on_seed_domain_dataset_and_epoch() -> None:
    orders = [mixed_order([[50], [50]], [1, 1], seed=seed, stream=stream) for seed in (0, 1) for stream in (0, 1)]
    seen = set()
    for order in orders:
        samples = order.samples(0, 200)
        for dataset in (samples[samples < 50], samples[samples >= 50] - 50):
            seen |= {tuple(dataset[:50]), tuple(dataset[50:])}
    assert len(seen) == 16


def together(order: MixedOrder, shard: int) -> float:
    """Fraction of neighbours in the order that come from one shard."""
    samples = order.samples(0, order.num_samples) // shard
    return float((np.diff(samples) == 0).mean())


@pytest.mark.parametrize(("buffer", "expected"), [(0, 1 / 50), (1000, 1 / 10), (100, 1.0)])
def test_a_smaller_buffer_shuffles_fewer_shards_together(buffer: int, expected: float) -> None:
    """50 shards of 100: neighbours share a shard as often as the shards of a group demand."""
    order = mixed_order([[100] * 50], [1.0], seed=3, stream=0, buffer=buffer)
    assert together(order, 100) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("buffer", [0, 500])
def test_a_sample_travels_as_far_as_in_a_perfect_shuffle(buffer: int) -> None:
    """The distance of two random places is a third of the length on average, and epochs know nothing of each other."""
    num = 5000
    order = mixed_order([[100] * 50], [1.0], seed=3, stream=0, buffer=buffer)
    places = np.stack([np.argsort(order.samples(epoch * num, num)) for epoch in range(20)])
    travelled = np.abs(np.diff(places, axis=0)) / num
    assert travelled.mean() == pytest.approx(1 / 3, abs=0.02)
    correlations = [np.corrcoef(places[i], places[i + 1])[0, 1] for i in range(19)]
    assert abs(np.mean(correlations)) < 0.08


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 12), st.integers(0, 60), st.integers(1, 30))
def test_the_shards_that_are_announced_are_those_that_are_needed(
    sizes: list[int], buffer: int, position: int, count: int
) -> None:
    order = mixed_order([sizes], [1.0], seed=5, stream=0, buffer=buffer)
    (dataset,) = order.datasets
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    needed = Counter(shard_of[order.samples(position, count)].tolist())
    announced = dataset.shards(position, count)
    assert set(needed) <= set(announced)
    assert len(announced) == len(set(announced))
    if buffer == 1:
        assert set(needed) == set(announced)


def test_a_dataset_begins_in_the_middle_of_its_turns() -> None:
    """Sample j of fraction w is due at (j + 1/2) / w: at 2/3, 2, 10/3, and at 2, 6 for three quarters and one."""
    order = mixed_order([[100], [100]], [3, 1], seed=0, stream=0)
    datasets, positions = order.turns(0, 8)
    assert datasets.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert positions.tolist() == [0, 1, 0, 2, 3, 4, 1, 5]
