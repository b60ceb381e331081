"""Windows and resizing against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.backbones.alexnet import AlexNet
from fastssl.backbones.resnet50 import ResNet50
from fastssl.config import BackboneSettings
from fastssl.methods.views import input_side, resized, standardised, windows


@pytest.mark.parametrize("of_channels", [False, True])
def test_windows_are_cut_out_of_their_own_image_and_channel(of_channels: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((2, 3, 20, 30), dtype=np.float32)
    shape = (2, 4, 3) if of_channels else (2, 4)
    top, left = rng.integers(0, 20 - 7 + 1, shape), rng.integers(0, 30 - 7 + 1, shape)
    top.flat[0], left.flat[0], top.flat[-1], left.flat[-1] = 0, 0, 13, 23
    given = torch.tensor(image).to(memory_format=torch.channels_last)
    found = windows(given, torch.tensor(top), torch.tensor(left), 7)
    for n, k, c in np.ndindex(2, 4, 3):
        row, column = (x[n, k, c] if of_channels else x[n, k] for x in (top, left))
        np.testing.assert_array_equal(found[n, k, c].numpy(), image[n, c, row : row + 7, column : column + 7])


def linear(plane: np.ndarray, side: int) -> np.ndarray:
    """Linear interpolation at the centres of pixels; beyond the border the border's pixel."""
    place = np.clip((np.arange(side) + 0.5) * len(plane) / side - 0.5, 0, len(plane) - 1)
    rows = np.stack([np.interp(place, np.arange(len(plane)), column) for column in plane.T], axis=1)
    return np.stack([np.interp(place, np.arange(len(plane)), row) for row in rows])


@pytest.mark.parametrize("side", [9, 13, 31])
def test_resized_views_are_linear_interpolations(side: int) -> None:
    views = np.random.default_rng(0).random((2, 4, 3, 9, 9), dtype=np.float32)
    found = resized(torch.tensor(views), side)
    assert found.shape == (2, 4, 3, side, side)
    for place in np.ndindex(2, 4, 3):
        np.testing.assert_allclose(found[place].numpy(), linear(views[place], side), atol=1e-5)


def test_standardised_views_have_no_mean_and_no_deviation_of_their_own() -> None:
    views = torch.rand(2, 4, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 3 + 5
    flat = standardised(views).double()
    values = views.double().numpy()
    expected = (values - values.mean((-2, -1), keepdims=True)) / values.std((-2, -1), keepdims=True)
    np.testing.assert_allclose(flat.numpy(), expected, atol=1e-5)
    assert standardised(torch.full((1, 3, 4, 4), 0.7)).abs().max() < 1e-3


def test_the_side_is_the_least_that_holds_the_window_and_that_the_backbone_takes() -> None:
    settings = BackboneSettings(width=0.1, fc_channels=8)
    assert [input_side(AlexNet(settings), length) for length in (10, 64, 67, 68)] == [67, 67, 67, 83]
    assert [input_side(ResNet50(settings), length) for length in (10, 64, 70)] == [64, 64, 70]
