"""Oracles: counting, and windows resampled pixel by pixel in plain Python."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader.order import mixed_order
from fastssl.loader.plan import (
    RankSlice,
    Views,
    ViewSettings,
    chosen_plan,
    endless_plan,
    evaluation_plan,
    training_views,
)

DATA = DataConfig(size=99, window=(0.7, 1.0))
NAMES = ("top", "left", "height", "width", "flip", "channel", "colour", "blur")


def rank_slices(num_samples: int, batch_size: int, world_size: int, seed: int = 3, stream: int = 0) -> list[RankSlice]:
    order = mixed_order([[num_samples]], [1], seed=seed, stream=stream)
    return [
        RankSlice(order=order, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]


def one_slice(batch_size: int, **seeds: int) -> RankSlice:
    return rank_slices(50, batch_size, 1, **seeds)[0]


def settings_of(
    data: DataConfig = DATA, *, stored: tuple[int, int] = (256, 256), **augment: float | tuple[float, float]
) -> ViewSettings:
    return ViewSettings(data=data, augment=AugmentConfig.model_validate(augment), stored=stored)


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
@pytest.mark.parametrize("num_samples", [11, 56, 61])
def test_every_epoch_holds_each_sample_once_over_all_ranks(num_samples: int, world_size: int) -> None:
    plans = [endless_plan(settings_of(), rank_slice).steps for rank_slice in rank_slices(num_samples, 4, world_size)]
    sequence = np.concatenate([next(plan)[0] for _ in range(60) for plan in plans])
    epochs = len(sequence) // num_samples
    assert epochs >= 3
    orders = sequence[: epochs * num_samples].reshape(epochs, num_samples)
    assert (np.sort(orders, axis=1) == np.arange(num_samples)).all()
    assert len({tuple(order) for order in orders}) == epochs, "each epoch has an order of its own"


def test_orders_and_views_depend_on_seed_and_domain() -> None:
    variants = [one_slice(50, seed=seed, stream=stream) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(next(endless_plan(settings_of(), rank_slice).steps)[0]) for rank_slice in variants}) == 4
    assert len({tuple(training_views(settings_of(), rank_slice, 0).left) for rank_slice in variants}) == 4


VARIED = settings_of(stored=(256, 200), brightness=0.3, hue=20, blur=0.5, aspect=(0.8, 1.3))


def test_samples_and_views_do_not_depend_on_the_number_of_ranks() -> None:
    samples, whole = next(endless_plan(VARIED, rank_slices(100, 12, 1)[0], position=60).steps)
    parts = [next(endless_plan(VARIED, rank_slice, position=60).steps) for rank_slice in rank_slices(100, 3, 4)]
    assert (np.concatenate([part[0] for part in parts]) == samples).all()
    for name in NAMES:
        assert (np.concatenate([getattr(views, name) for _, views in parts]) == getattr(whole, name)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 4))
def test_another_number_of_ranks_goes_on_with_the_very_same_samples_and_views(
    steps: int, batch_size: int, world_size: int
) -> None:
    before = rank_slices(23, 4, 3)
    position = steps * before[0].global_batch
    plans = [
        endless_plan(VARIED, rank_slice, position=position).steps
        for rank_slice in rank_slices(23, batch_size, world_size)
    ]
    got = [next(plan) for _ in range(3) for plan in plans]
    num = len(got) * batch_size
    samples, views = next(endless_plan(VARIED, rank_slices(23, num, 1)[0], position=position).steps)
    assert (np.concatenate([part[0] for part in got]) == samples).all()
    for name in NAMES:
        assert (np.concatenate([getattr(part[1], name) for part in got]) == getattr(views, name)).all()


def test_windows_stay_inside_and_reach_everywhere() -> None:
    views = training_views(settings_of(stored=(100, 60)), one_slice(4000), 0)
    assert views.top.min() == 0
    assert views.left.min() == 0
    assert (views.top + views.height).max() == 100
    assert (views.left + views.width).max() == 60
    assert views.height.min() == 70
    assert views.height.max() == 100
    assert 0.45 < views.flip.mean() < 0.55
    assert np.bincount(views.channel).min() > 1200
    assert (views.colour == [1, 1, 1, 0]).all()
    assert (views.blur == 0).all()


@pytest.mark.parametrize(("last_corner", "places"), [(True, 30), (False, 29)])
def test_corners_lie_where_the_setting_lets_them(last_corner: bool, places: int) -> None:
    """A window of 227 in 256 pixels has 30 places, of which the authors' `randint(0, 256 - 227)` draws 29."""
    views = training_views(settings_of(DataConfig(last_corner=last_corner)), one_slice(4000), 0)
    for corners in (views.top, views.left):
        counts = np.bincount(corners)
        assert len(counts) == places
        # Six standard deviations of a count, were all places alike.
        assert np.abs(counts - 4000 / places).max() < 6 * np.sqrt(4000 / places)


def test_a_window_without_room_has_one_place() -> None:
    views = training_views(settings_of(DataConfig(window=(1.0, 1.0), last_corner=False)), one_slice(50), 0)
    assert not views.top.any()
    assert not views.left.any()


def test_aspect_and_scale_vary_apart() -> None:
    views = training_views(settings_of(DataConfig(window=(0.3, 0.6)), aspect=(0.5, 2.0)), one_slice(4000), 0)
    ratio, area = views.width / views.height, np.sqrt(views.width * views.height) / 256
    assert 0.48 < ratio.min() < 0.53
    assert 1.9 < ratio.max() < 2.1
    assert abs(np.log(ratio).mean()) < 0.05
    assert 0.29 < area.min() < 0.32
    assert 0.58 < area.max() < 0.61
    assert abs(np.corrcoef(ratio, area)[0, 1]) < 0.05
    assert (views.top + views.height <= 256).all()
    assert (views.left + views.width <= 256).all()


def test_colours_and_blur_keep_within_their_settings() -> None:
    jitter = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 30.0}
    views = training_views(settings_of(**jitter, blur=0.25, blur_sigma=(0.5, 1.5)), one_slice(4000), 0)
    middle, reach = np.array([1, 1, 1, 0]), np.array(list(jitter.values()))
    assert (np.abs(views.colour - middle) <= reach + 1e-6).all()
    assert (np.abs(views.colour - middle).max(axis=0) > 0.98 * reach).all()
    assert (np.abs((views.colour - middle).mean(axis=0)) < 0.05 * reach).all()
    blurred = views.blur[views.blur > 0]
    assert 0.22 < len(blurred) / 4000 < 0.28
    assert blurred.min() >= 0.5
    assert blurred.max() <= 1.5


@pytest.mark.parametrize(("gray", "channels"), [("per_batch", 1), ("off", 1), ("per_sample", 3)])
def test_gray_setting(gray: str, channels: int) -> None:
    data = DataConfig.model_validate({"gray": gray})
    views = training_views(settings_of(data), one_slice(64), 0)
    assert len(set(views.channel)) == channels
    assert (views.channel == -1).all() == (gray == "off")
    chosen = {int(training_views(settings_of(data), one_slice(64), 64 * step).channel[0]) for step in range(30)}
    assert chosen == ({-1} if gray == "off" else {0, 1, 2})


def test_eight_ranks_then_six_then_eight_take_the_samples_of_one_alone() -> None:
    """Position by position, with their views, though batches change on the way, too."""
    got, position = list[tuple[NDArray[np.int64], Views]](), 0
    for world_size, batch_size, steps in ((8, 4, 3), (6, 5, 2), (8, 3, 4)):
        plans = [endless_plan(VARIED, one, position=position).steps for one in rank_slices(23, batch_size, world_size)]
        got += [next(plan) for _ in range(steps) for plan in plans]
        position += steps * world_size * batch_size
    samples, views = next(endless_plan(VARIED, rank_slices(23, position, 1)[0]).steps)
    assert (np.concatenate([part[0] for part in got]) == samples).all()
    for name in NAMES:
        assert (np.concatenate([getattr(part[1], name) for part in got]) == getattr(views, name)).all()


def test_all_ranks_take_one_channel_per_batch() -> None:
    data = DataConfig.model_validate({"gray": "per_batch"})
    channels = {
        int(training_views(settings_of(data), rank_slice, 28).channel[0]) for rank_slice in rank_slices(9, 4, 7)
    }
    assert len(channels) == 1


def test_plan_started_later_goes_on_as_the_plan_from_the_start() -> None:
    rank_slice = rank_slices(23, 4, 1, seed=9, stream=1)[0]
    early = endless_plan(settings_of(), rank_slice).steps
    steps = [next(early) for _ in range(12)]
    late = endless_plan(settings_of(), rank_slice, position=36).steps
    for samples, views in steps[9:]:
        later_samples, later_views = next(late)
        assert (samples == later_samples).all()
        assert (views.roi()[0] == later_views.roi()[0]).all()


def test_evaluation_sees_every_sample_once_through_the_centre() -> None:
    steps = list(evaluation_plan(settings_of(stored=(100, 100), brightness=0.5, blur=1.0), 10, 4).steps)
    assert [len(samples) for samples, _ in steps] == [4, 4, 2]
    assert np.concatenate([samples for samples, _ in steps]).tolist() == list(range(10))
    views = steps[0][1]
    assert (views.height == 85).all()
    assert (views.top == 7).all()
    assert not views.flip.any()
    assert (views.colour == [1, 1, 1, 0]).all()
    assert not views.blur.any()


def test_the_position_of_an_evaluated_sample_is_its_number_whatever_the_batches() -> None:
    every = evaluation_plan(settings_of(), 5, 2).steps
    assert [views.position.tolist() for _, views in every] == [[0, 1], [2, 3], [4]]
    some = chosen_plan(settings_of(), (np.array(numbers) for numbers in ([7, 3], [3])), 2).steps
    assert [(samples.tolist(), views.position.tolist()) for samples, views in some] == [([7, 3], [7, 3]), ([3], [3])]


def one_view(top: int, left: int, height: int, width: int, flip: bool) -> Views:
    def column(value: int) -> np.ndarray:
        return np.array([value])

    return Views(
        position=column(0),
        top=column(top),
        left=column(left),
        height=column(height),
        width=column(width),
        flip=np.array([flip]),
        channel=column(0),
        colour=np.array([[1, 1, 1, 0]], np.float32),
        blur=np.zeros(1, np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(1, 40))
def test_sources_are_the_pixels_that_hold_the_output_pixels_centres(
    top: int, left: int, height: int, width: int, flip: bool, size: int
) -> None:
    rows, columns = one_view(top, left, height, width, flip).sources(size)
    centres = [Fraction(2 * i + 1, 2 * size) for i in range(size)]
    across = [1 - centre for centre in centres] if flip else centres
    assert rows[0].tolist() == [int(top + centre * height) for centre in centres]
    exact = [left + centre * width for centre in across]
    # A centre on the border of two pixels belongs to either when it is mirrored.
    assert all(int(place) == got or place == got + 1 for place, got in zip(exact, columns[0].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), st.integers(1, 60), st.integers(1, 40))
def test_cells_share_out_the_window(top: int, height: int, size: int) -> None:
    rows, _ = one_view(top, 0, height, height, False).cells(size)
    starts = rows[0].tolist()
    assert starts == [top + int(Fraction(i * height, size)) for i in range(size)]
    if height >= size:
        stops = [*starts[1:], top + height]
        covered = [row for start, stop in zip(starts, stops, strict=True) for row in range(start, stop)]
        assert covered == list(range(top, top + height))
