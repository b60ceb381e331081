"""Oracles: counting, and windows resampled pixel by pixel in plain Python."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.config import DataConfig
from fastssl.loader.plan import Share, Views, evaluation_plan, training_plan, training_views

DATA = DataConfig(size=99, window=(0.7, 1.0))


def shares(num_samples: int, batch_size: int, world_size: int) -> list[Share]:
    return [
        Share(num_samples=num_samples, batch_size=batch_size, seed=3, stream=0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
@pytest.mark.parametrize("num_samples", [11, 56, 61])
def test_every_epoch_holds_each_sample_once_over_all_ranks(num_samples: int, world_size: int) -> None:
    ranks = shares(num_samples, 4, world_size)
    sequence = np.concatenate([rank.samples(step) for step in range(60) for rank in ranks])
    epochs = len(sequence) // num_samples
    assert epochs >= 3
    orders = sequence[: epochs * num_samples].reshape(epochs, num_samples)
    assert (np.sort(orders, axis=1) == np.arange(num_samples)).all()
    assert len({tuple(order) for order in orders}) == epochs, "each epoch has an order of its own"


def test_orders_and_views_depend_on_seed_and_domain() -> None:
    base = {"num_samples": 50, "batch_size": 50}
    variants = [Share(**base, seed=seed, stream=stream) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(share.samples(0)) for share in variants}) == 4
    assert len({tuple(training_views(DATA, share, 0, (256, 256), whole=False).left) for share in variants}) == 4


def test_views_do_not_depend_on_the_number_of_ranks() -> None:
    whole = training_views(DATA, shares(100, 12, 1)[0], 5, (256, 200), whole=False)
    parts = [training_views(DATA, share, 5, (256, 200), whole=False) for share in shares(100, 3, 4)]
    for name in ("top", "left", "height", "width", "flip", "channel"):
        assert (np.concatenate([getattr(part, name) for part in parts]) == getattr(whole, name)).all()


def test_windows_stay_inside_and_reach_everywhere() -> None:
    share = Share(num_samples=10, batch_size=4000, seed=0, stream=0)
    views = training_views(DATA, share, 0, (100, 60), whole=False)
    assert views.top.min() == 0
    assert views.left.min() == 0
    assert (views.top + views.height).max() == 100
    assert (views.left + views.width).max() == 60
    assert views.height.min() == 70
    assert views.height.max() == 100
    assert 0.45 < views.flip.mean() < 0.55
    assert np.bincount(views.channel).min() > 1200


@pytest.mark.parametrize(("gray", "channels"), [("per_batch", 1), ("off", 1), ("per_sample", 3)])
def test_gray_setting(gray: str, channels: int) -> None:
    data = DataConfig.model_validate({"gray": gray})
    views = training_views(data, Share(num_samples=9, batch_size=64, seed=0, stream=0), 0, (256, 256), whole=False)
    assert len(set(views.channel)) == channels
    assert (views.channel == -1).all() == (gray == "off")


def test_plan_started_later_goes_on_as_the_plan_from_the_start() -> None:
    share = Share(num_samples=23, batch_size=4, seed=9, stream=1)
    early = training_plan(DATA, share, (256, 256), whole=False, first_step=0)
    steps = [next(early) for _ in range(12)]
    late = training_plan(DATA, share, (256, 256), whole=False, first_step=9)
    for samples, views in steps[9:]:
        later_samples, later_views = next(late)
        assert (samples == later_samples).all()
        assert (views.roi()[0] == later_views.roi()[0]).all()


def test_evaluation_sees_every_sample_once_through_the_centre() -> None:
    steps = list(evaluation_plan(DATA, 10, 4, (100, 100), whole=False))
    assert [len(samples) for samples, _ in steps] == [4, 4, 2]
    assert np.concatenate([samples for samples, _ in steps]).tolist() == list(range(10))
    views = steps[0][1]
    assert (views.height == 85).all()
    assert (views.top == 7).all()
    assert not views.flip.any()


def one_view(top: int, left: int, height: int, width: int, flip: bool) -> Views:
    def column(value: int) -> np.ndarray:
        return np.array([value])

    return Views(
        top=column(top),
        left=column(left),
        height=column(height),
        width=column(width),
        flip=np.array([flip]),
        channel=column(0),
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
