"""Windows against NumPy, pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch

from fastssl.backbones.alexnet import AlexNet
from fastssl.backbones.resnet50 import ResNet50
from fastssl.config import BackboneSettings
from fastssl.methods.views import cut, input_side, standardised


def linear(plane: np.ndarray, top: float, left: float, length: float, side: int) -> np.ndarray:
    """Linear interpolation at the centres of the window's pixels; beyond the border the border's pixel."""
    found = np.zeros((side, side))
    height, width = plane.shape
    for i in range(side):
        for j in range(side):
            y, x = top + (i + 0.5) * length / side - 0.5, left + (j + 0.5) * length / side - 0.5
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    found[i, j] += weight * plane[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return found


def test_windows_are_linear_interpolations_of_their_own_image_and_channel() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((2, 3, 20, 30))
    top, left = rng.uniform(0, 20 - 7.5, (2, 4, 3)), rng.uniform(0, 30 - 7.5, (2, 4, 3))
    found = cut(*(torch.tensor(x, dtype=torch.float32) for x in (image, top, left)), 7.5, 6)
    for n, k, c in np.ndindex(2, 4, 3):
        expected = linear(image[n, c], top[n, k, c], left[n, k, c], 7.5, 6)
        np.testing.assert_allclose(found[n, k, c].numpy(), expected, atol=2e-5)


def test_a_window_at_whole_pixels_is_cut_out_as_it_is() -> None:
    image = torch.rand(2, 3, 31, 31, generator=torch.Generator().manual_seed(0))
    found = cut(image, torch.tensor([[0, 5], [24, 1]]), torch.tensor([[3, 24], [0, 2]]), 7, 7)
    for (n, k), (top, left) in {(0, 0): (0, 3), (0, 1): (5, 24), (1, 0): (24, 0), (1, 1): (1, 2)}.items():
        torch.testing.assert_close(found[n, k], image[n, :, top : top + 7, left : left + 7], rtol=0, atol=2e-5)


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
