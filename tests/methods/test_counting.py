"""Counting: the loss by hand, views against NumPy, and photos that were not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretext_steps import draws, held_out, method, random_photos, trained
from torch import Tensor

from fastssl.errors import ConfigError
from fastssl.losses import counting_loss
from fastssl.methods import load_config
from fastssl.methods.counting import Networks

MARGIN = 1.0
"""By how much the loss of held-out photos is below that of counting nothing. One seed reached 8.40, and 9.96 where
it was taught quarters of others."""


def test_the_loss_worked_by_hand() -> None:
    """Two images of two numbers each. Sums of parts are (3, 1) and (0, 2).

    To the whole: |(2, 1) - (3, 1)|^2 = 1 and |(0, 0) - (0, 2)|^2 = 4. To the other: |(3, 3) - (3, 1)|^2 = 4, which is 6
    less than the margin, and |(4, 2) - (0, 2)|^2 = 16, which is more.
    """
    whole, other = torch.tensor([[2.0, 1], [0, 0]]), torch.tensor([[3.0, 3], [4, 2]])
    parts = torch.tensor([[[1.0, 0], [1, 1], [1, 0], [0, 0]], [[0, 0], [0, 1], [0, 0], [0, 1]]])
    equal, different = counting_loss(whole, parts, other, 10.0)
    assert (equal.item(), different.item()) == ((1 + 4) / 2, (6 + 0) / 2)


def test_the_distance_is_of_an_image_and_not_of_each_number() -> None:
    """A distance of 9 in each of two numbers is 18, and farther than the margin, though neither is by itself."""
    whole, parts, other = torch.zeros(1, 2), torch.zeros(1, 4, 2), torch.full((1, 2), 3.0)
    assert counting_loss(whole, parts, other, 10.0)[1] == 0


def test_counting_nothing_costs_the_margin() -> None:
    equal, different = counting_loss(torch.zeros(3, 7), torch.zeros(3, 4, 7), torch.zeros(3, 7), 10.0)
    assert (equal, different) == (0, 10)
    step = method("counting")
    assert step.chance(step.config) == {"counting": 10.0}
    assert step({"real": random_photos(4)})["counting"].item() == pytest.approx(10, rel=0.1)


def test_the_gradient_of_the_loss_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 3), (2, 4, 3), (2, 3))
    ]
    assert torch.autograd.gradcheck(lambda *x: counting_loss(*x, 10.0), given)


def test_views_are_the_photo_made_smaller_and_its_quarters() -> None:
    """A photo of 131 pixels is resized to twice the 67 that the backbone takes, of which quarters are cut out."""
    networks = method("counting", "data.size=131", "views.gray=0.0").networks
    batch = random_photos(8, 131)
    views, _ = networks.views(batch, draws(8))
    assert views.shape == (8, 5, 3, 67, 67)
    large = F.interpolate(batch.image, (134, 134), mode="bilinear")
    for place, (row, column) in enumerate(((0, 0), (0, 67), (67, 0), (67, 67))):
        part = large[:, :, row : row + 67, column : column + 67]
        torch.testing.assert_close(views[:, 1 + place], part, rtol=0, atol=1e-5)
    torch.testing.assert_close(views[:, 0], networks.whole(large, draws(8)), rtol=0, atol=1e-5)


def test_how_a_photo_is_made_smaller_differs_so_that_it_tells_nothing() -> None:
    """Each as by a filter over four pixels in NumPy; the two ends that have a name are torch's."""
    networks = method("counting", "data.size=131").networks
    image = torch.rand(60, 3, 134, 134, generator=torch.Generator().manual_seed(0))
    found, outer = networks.whole(image, draws(60)), draws(60).uniform("counting way").numpy() * 0.35 - 0.1
    assert outer.std() > 0.08
    for n in range(60):
        matrix = np.zeros((67, 134))
        for row in range(67):
            for tap, weight in enumerate((outer[n], 1 - outer[n], 1 - outer[n], outer[n])):
                matrix[row, np.clip(2 * row - 1 + tap, 0, 133)] += weight / 2
        expected = matrix @ image[n].double().numpy() @ matrix.T
        np.testing.assert_allclose(found[n].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("outer", "words"), [(0.0, {"mode": "area"}), (0.25, {"mode": "bilinear", "antialias": True})])
def test_filters_that_have_a_name(outer: float, words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of areas, and linear interpolation without aliases, but for the pixels of the border."""
    monkeypatch.setattr("fastssl.methods.counting._SHARP", outer)
    monkeypatch.setattr("fastssl.methods.counting._SOFT", outer)
    image = torch.rand(2, 3, 134, 134, generator=torch.Generator().manual_seed(0))
    found = method("counting", "data.size=131").networks.whole(image, draws(2))
    expected = F.interpolate(image, (67, 67), **words)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_some_photos_are_gray_with_all_their_quarters() -> None:
    networks = method("counting").networks
    views, other = networks.views(random_photos(200), draws(200))
    spread = (views.amax(dim=2) - views.amin(dim=2)).amax(dim=(2, 3))
    is_gray = spread < 1e-5
    assert (is_gray == is_gray[:, :1]).all()
    assert is_gray[:, 0].double().mean() == pytest.approx(0.5, abs=5 * (0.25 / 200) ** 0.5)
    assert (other != torch.arange(200)).all()


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)another of its batch.*data\.batch_real"):
        load_config("tiny", method="counting", overrides=["data.batch_real=1"])


def loss(outputs: Tensor, target: Tensor) -> Tensor:
    equal, different = counting_loss(outputs[:, 0], outputs[:, 1:], outputs[target, 0], 10.0)
    return equal + different


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_counts_of_photos_that_were_not_trained_on_sum_and_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that was taught other photos' quarters they do no better than counts of nothing."""
    words = ["data.size=131", "train.steps=200"]
    assert held_out(trained("counting", tmp_path / "run", *words, data=["real_train"]), loss) < 10 - MARGIN
    views = Networks.views
    generator = torch.Generator().manual_seed(0)

    def others(self: Networks, batch: object, numbers: object) -> tuple[Tensor, Tensor]:
        seen, target = views(self, batch, numbers)  # type: ignore[arg-type]
        order = torch.randperm(len(seen), generator=generator)
        return torch.cat([seen[:, :1], seen[order, 1:]], dim=1), target[torch.randperm(len(seen), generator=generator)]

    with monkeypatch.context() as patched:
        patched.setattr(Networks, "views", others)
        run = trained("counting", tmp_path / "shuffled", *words, data=["real_train"])
    assert held_out(run, loss) > 10 - MARGIN
