"""Feature pool, against a pool that handles one map at a time and is fed the same random numbers."""

from __future__ import annotations

import io
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.errors import CheckpointError
from fastssl.layers.feature_pool import FeaturePool


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _maps(numbers: list[int]) -> Tensor:
    """Maps that carry their image's number in every entry."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 3, 3).clone()


def _numbers(maps: Tensor) -> list[int]:
    assert (maps == maps[:, :1, :1, :1]).all()
    return [int(x) for x in maps[:, 0, 0, 0]]


class OneByOne:
    """The rule as a loop over images."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.images: list[int] = []

    def mix(self, images: list[int]) -> list[int]:
        coins = torch.rand(len(images), generator=self.generator).tolist()
        slots = torch.randint(self.size, (len(images),), generator=self.generator).tolist()
        out: list[int] = []
        for image, coin, slot in zip(images, coins, slots, strict=True):
            if len(self.images) < self.size:
                self.images.append(image)
                out.append(image)
            elif coin < 0.5:
                out.append(self.images[slot])
                self.images[slot] = image
            else:
                out.append(image)
        return out


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=st.integers(0, 999))
def test_the_same_as_one_map_at_a_time(size: int, batches: list[int], seed: int) -> None:
    pool, slow = FeaturePool(size, _generator(seed)), OneByOne(size, _generator(seed))
    number = 0
    for count in batches:
        images = list(range(number, number + count))
        number += count
        assert _numbers(pool.mix(_maps(images))) == slow.mix(images)
        assert _numbers(pool.state_dict()["maps"]) == slow.images


def test_until_it_is_full_every_map_is_handed_on() -> None:
    pool = FeaturePool(8, _generator())
    assert _numbers(pool.mix(_maps([1, 2, 3]))) == [1, 2, 3]
    assert _numbers(pool.mix(_maps([4, 5, 6, 7, 8]))) == [4, 5, 6, 7, 8]
    assert _numbers(pool.state_dict()["maps"]) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_half_of_the_maps_are_exchanged_with_slots_drawn_evenly() -> None:
    pool, size, count, steps = FeaturePool(16, _generator()), 16, 4, 2500
    pool.mix(_maps(list(range(size))))
    exchanged, written = 0, [0] * size
    for step in range(steps):
        before = _numbers(pool.state_dict()["maps"])
        images = [size + step * count + i for i in range(count)]
        out = _numbers(pool.mix(_maps(images)))
        exchanged += sum(a != b for a, b in zip(images, out, strict=True))
        for slot, (a, b) in enumerate(zip(before, _numbers(pool.state_dict()["maps"]), strict=True)):
            written[slot] += a != b
    draws = steps * count
    assert abs(exchanged - draws / 2) < 5 * math.sqrt(draws / 4)
    fraction = 1 - (1 - 0.5 / size) ** count  # of steps that write a given slot
    for writes in written:
        assert abs(writes - steps * fraction) < 5 * math.sqrt(steps * fraction * (1 - fraction))


def test_the_published_pool_of_128_for_batches_of_224_hands_on_mostly_this_steps_maps() -> None:
    # Simulated from the authors' code by others: 67 % of this step, 0.57 steps old on average.
    pool, recent, ages = FeaturePool(128, _generator()), deque[float](maxlen=200), deque[float](maxlen=200)
    for step in range(220):
        age = step - torch.tensor(_numbers(pool.mix(_maps([step] * 224))), dtype=torch.float64)
        recent.append((age == 0).double().mean().item())
        ages.append(age.mean().item())
    assert abs(sum(recent) / 200 - 0.67) < 0.01
    assert abs(sum(ages) / 200 - 0.57) < 0.02


@pytest.mark.parametrize("saved_after", [1, 5])
def test_a_saved_pool_continues_as_if_never_stopped(saved_after: int) -> None:
    batches = [_maps(list(range(6 * i, 6 * i + 6))) for i in range(12)]
    pool = FeaturePool(16, _generator(3))
    for batch in batches[:saved_after]:
        pool.mix(batch)
    state, file = pool.state_dict(), io.BytesIO()
    torch.save(state, file)
    expected = [_numbers(pool.mix(batch)) for batch in batches[saved_after:]]
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    for snapshot in (state, saved):  # the state in memory must not follow the pool either
        resumed = FeaturePool(16, _generator(99))
        resumed.load_state_dict(snapshot)
        assert [_numbers(resumed.mix(batch)) for batch in batches[saved_after:]] == expected


def test_a_pool_can_be_saved_before_its_first_step() -> None:
    state = FeaturePool(4, _generator(3)).state_dict()
    pool, resumed = FeaturePool(4, _generator(3)), FeaturePool(4, _generator(99))
    resumed.load_state_dict(state)
    for _ in range(3):
        assert _numbers(resumed.mix(_maps([1, 2, 3]))) == _numbers(pool.mix(_maps([1, 2, 3])))


def test_a_smaller_pool_refuses_the_state() -> None:
    pool = FeaturePool(4, _generator())
    pool.mix(_maps([1, 2, 3]))
    with pytest.raises(CheckpointError, match=r"(?s)optim\.pool_size.*seen: 3.*at most 2"):
        FeaturePool(2, _generator()).load_state_dict(pool.state_dict())


def test_size_0_hands_on_the_features_and_draws_nothing() -> None:
    generator = _generator()
    before = generator.get_state()
    features = _maps([1, 2]).requires_grad_()
    out = FeaturePool(0, generator).mix(features)
    assert not out.requires_grad
    assert out.data_ptr() == features.data_ptr()
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detached_and_laid_out_as_the_features(dtype: torch.dtype) -> None:
    pool, state = FeaturePool(3, _generator()), torch.get_rng_state()
    for numbers in ([1, 2], [3, 4], [5, 6]):
        features = _maps(numbers).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
        out = pool.mix(features)
        assert not out.requires_grad
        assert out.dtype == dtype
        assert out.stride() == features.stride()
        assert _numbers(features) == numbers
    assert torch.equal(torch.get_rng_state(), state)


def test_it_keeps_no_more_memory_than_its_maps() -> None:
    pool = FeaturePool(4, _generator())
    for _ in range(3):
        out = pool.mix(_maps(list(range(50))))
    maps = pool.state_dict()["maps"]
    assert maps.untyped_storage().nbytes() == 4 * 2 * 3 * 3 * 4
    assert out.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()


def test_the_host_never_looks_at_a_value() -> None:
    # A tensor on the device `meta` has no values: whatever would wait for one fails.
    pool = FeaturePool(5, _generator())
    for count in (3, 4, 8):
        assert pool.mix(torch.empty(count, 2, 3, 3, device="meta")).shape == (count, 2, 3, 3)
