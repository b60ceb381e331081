"""Colorization: colours, bins and weights against NumPy, gray photos, and photos that were not trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pretext_steps import held_out, method, photos, random_photos, shuffled, trained
from torch import Tensor

from fastssl.batch import IMAGE_MEAN
from fastssl.errors import ConfigError
from fastssl.losses import bins_loss, rebalancing_weights
from fastssl.methods import load_config
from fastssl.methods.colorization import Networks
from fastssl.methods.colours import bins_near, chroma_bins, gray, lab, rgb, soft_bins

# For each a of the authors' 313 bins, the least and the largest b.
AUTHORS = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip

MARGIN = 0.1
"""By how much the loss of held-out crops is below that of a network that was taught the colours of others. One seed
reached 3.57, and the other 3.77."""


def image_of(colours: list[list[float]]) -> Tensor:
    """A photo of one pixel for each colour, RGB in 0..255, as batches have it."""
    values = torch.tensor(colours) / 255 - torch.tensor(IMAGE_MEAN.tolist())
    return values.T[None, :, None, :]


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        # Published values of CIE Lab for sRGB's corners, white D65.
        ([255, 0, 0], [53.24, 80.09, 67.20]), ([0, 255, 0], [87.73, -86.18, 83.18]),
        ([0, 0, 255], [32.30, 79.19, -107.86]),
        ([255, 255, 255], [100, 0, 0]), ([0, 0, 0], [0, 0, 0]), ([119, 119, 119], [50.03, 0, 0]),
        ([3, 3, 3], [0.823, 0, 0]),
    ],
)  # fmt: skip
def test_lab_is_the_published_one(colour: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(lab(image_of([colour]))[0, :, 0, 0].numpy(), expected, atol=0.06)


def test_lab_and_back() -> None:
    image = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) - torch.tensor(IMAGE_MEAN)[:, None, None]
    torch.testing.assert_close(rgb(lab(image)), image, rtol=0, atol=1e-4)
    plain = gray(image) - torch.tensor(IMAGE_MEAN)[:, None, None]
    torch.testing.assert_close(lab(plain)[:, :1], lab(image)[:, :1], rtol=0, atol=1e-2)
    assert lab(plain)[:, 1:].abs().max() < 0.02


def test_there_are_313_bins_from_minus_110_to_100_which_are_the_authors_but_three() -> None:
    bins = chroma_bins()
    assert bins.shape == (313, 2)
    assert (bins.min(), bins.max()) == (-110, 100)
    assert (bins % 10 == 0).all()
    theirs = {(a, b) for a, (least, largest) in AUTHORS.items() for b in range(least, largest + 1, 10)}
    assert len(theirs) == 313
    assert len(theirs & {(int(a), int(b)) for a, b in bins}) == 310


def numpy_soft_bins(value: np.ndarray, bins: np.ndarray, neighbours: int, deviation: float) -> np.ndarray:
    distance = np.hypot(*(bins - value).T)
    weight = np.exp(-(distance**2) / (2 * deviation**2))
    weight[np.argsort(distance, kind="stable")[neighbours:]] = 0
    return weight / weight.sum()


@pytest.mark.parametrize("neighbours", [1, 5, 10, 313])
def test_colours_are_spread_over_their_nearest_bins(neighbours: int) -> None:
    """Of colours that photos can have, the corners of sRGB among them."""
    level = np.random.default_rng(0).integers(0, 256, (40, 3)).tolist()
    corners = [[255 * (n >> 2), 255 * (n >> 1 & 1), 255 * (n & 1)] for n in range(8)]
    chroma = lab(image_of(level + corners))[:, 1:].double()
    found = soft_bins(chroma, torch.tensor(chroma_bins()), torch.tensor(bins_near(neighbours)), neighbours, 5.0).numpy()
    for place in range(48):
        expected = numpy_soft_bins(chroma[0, :, 0, place].numpy(), chroma_bins(), neighbours, 5)
        np.testing.assert_allclose(found[0, :, 0, place], expected, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("neighbours", [5, 10])
def test_no_bin_that_is_near_is_left_out_of_the_search(neighbours: int) -> None:
    """At random places of the whole grid, and at its corners; a search looks at few of the 313."""
    near, bins = bins_near(neighbours), chroma_bins()
    assert near.shape[1] <= 20
    places = np.concatenate([np.random.default_rng(0).uniform(-110, 100, (3000, 2)), [[-110, -110], [99.9, 99.9]]])
    for place in places:
        distance = np.hypot(*(bins - place).T)
        a, b = ((place + 110) // 5).astype(int)
        assert np.sort(distance[near[a * 42 + b]])[neighbours - 1] == np.sort(distance)[neighbours - 1]


@pytest.mark.parametrize("setting", ["views.deviation=1e-30", "views.least_chroma=1000"])
def test_settings_of_which_nothing_could_be_learnt_are_refused(setting: str) -> None:
    """A Gaussian without a width has no weights, and no photo is as colourful as that."""
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load_config("tiny", method="colorization", overrides=[setting])


@pytest.mark.parametrize("deviation", [0.1, 1e6])
def test_the_narrowest_and_a_wide_gaussian_are_distributions(deviation: float) -> None:
    chroma = lab(image_of([[255, 0, 0], [10, 200, 30], [128, 128, 128]]))[:, 1:]
    bins = torch.tensor(chroma_bins(), dtype=torch.float32)
    found = soft_bins(chroma, bins, torch.tensor(bins_near(10)), 10, deviation)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 1, 3))


def test_rare_colours_weigh_more_with_mean_1_under_the_prior() -> None:
    prior = np.random.default_rng(0).dirichlet(np.full(313, 0.05))
    found = rebalancing_weights(torch.tensor(prior), 0.5).numpy()
    raw = 1 / (0.5 * prior + 0.5 / 313)
    np.testing.assert_allclose(found, raw / (prior * raw).sum())
    assert (prior * found).sum() == pytest.approx(1)
    assert (np.diff(found[np.argsort(prior)]) <= 0).all()
    np.testing.assert_allclose(rebalancing_weights(torch.tensor(prior), 1.0).numpy(), 1)


def test_the_authors_weights_belong_to_a_prior_of_one_frequent_colour() -> None:
    """Theirs run from 0.1716 to 9.891: their ratio is 1 + Q p / 2 of a colour that is never seen and the commonest one.

    So p is 0.358, and the weights of a prior with such a colour have their ratio.
    """
    most = (9.891 / 0.1716 - 1) / 313 * 0.5 / 0.5
    prior = torch.full((313,), (1 - most) / 311, dtype=torch.float64)
    prior[0], prior[1] = most, 0
    found = rebalancing_weights(prior, 0.5)
    assert (found.max() / found.min()).item() == pytest.approx(9.891 / 0.1716, rel=1e-6)


def test_the_loss_is_the_weighted_cross_entropy_of_the_places_that_count() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 5, 3, 3)), rng.dirichlet(np.ones(5), (2, 3, 3)).transpose(0, 3, 1, 2)
    target[1, :, 0] = 0
    weight, total, count = rng.uniform(0.2, 5, 5), 0.0, 0
    for n, i, j in np.ndindex(2, 3, 3):
        if target[n, :, i, j].any():
            log = logits[n, :, i, j] - math.log(np.exp(logits[n, :, i, j]).sum())
            total -= weight[target[n, :, i, j].argmax()] * (target[n, :, i, j] * log).sum()
            count += 1
    found = bins_loss(*(torch.tensor(x) for x in (logits, target, weight)))
    assert count == 15
    assert found.item() == pytest.approx(total / count)


def test_the_gradient_of_the_loss_is_that_of_differences() -> None:
    rng = np.random.default_rng(0)
    target = torch.tensor(rng.dirichlet(np.ones(4), (1, 2, 2)).transpose(0, 3, 1, 2))
    weight = torch.tensor(rng.uniform(0.5, 2, 4))
    logits = torch.tensor(rng.normal(size=(1, 4, 2, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bins_loss(x, target, weight), logits)


def test_a_photo_without_colours_teaches_nothing() -> None:
    """Not even a little yellow one; and it counts for no colour's frequency."""
    step = method("colorization")
    flat = torch.linspace(0, 1, 67).expand(1, 3, 67, 67) - torch.tensor(IMAGE_MEAN)[:, None, None]
    _, target = step.views(photos(flat))
    assert (target == 0).all()
    before = [parameter.clone() for parameter in step.networks.classifier.parameters()]
    loss = step({"real": photos(flat.expand(2, 3, 67, 67))})["colorization"]
    assert loss == 0
    assert step.networks.colours_seen.sum() == 0
    assert len(before) == 2
    coloured = random_photos(2)
    _, both = step.views(photos(torch.cat([flat, coloured.image])))
    assert both.sum(dim=1)[0].sum() == 0
    torch.testing.assert_close(both.sum(dim=1)[1:], torch.ones(2, 5, 5))


def test_what_the_network_sees_has_no_colour() -> None:
    """Photos of the same lightness and other colours are one to it."""
    networks = method("colorization").networks
    colours = lab(random_photos(2).image)
    other = colours * torch.tensor([1.0, 0.3, -0.3])[:, None, None]
    first, _ = method("colorization").views(photos(rgb(colours)))
    seen = rgb(other)
    second, _ = method("colorization").views(photos(seen))
    inside = (lab(seen) - other).abs().amax(dim=1, keepdim=True) < 1e-2  # what sRGB has
    assert inside.double().mean() > 0.5
    assert ((first - second).abs() * inside).max() < 1e-3
    weight = networks.backbone.layers["conv1"].conv.weight
    assert torch.equal(weight[:, 0], weight[:, 1])
    assert torch.equal(weight[:, 0], weight[:, 2])


def test_conv1_stays_alike_for_all_channels() -> None:
    step = method("colorization")
    for number in range(3):
        step({"real": random_photos(4, first=4 * number)})
    weight = step.backbone.layers["conv1"].conv.weight.detach()
    torch.testing.assert_close(weight, weight.mean(dim=1, keepdim=True).expand_as(weight), rtol=1e-3, atol=1e-5)


def test_colours_are_counted_after_the_step_that_they_do_not_weigh_in() -> None:
    step, other = method("colorization"), method("colorization", "loss.uniform=1.0")
    batch = random_photos(4)
    _, target = step.views(batch)
    first, unweighted = step({"real": batch}), other({"real": batch})
    assert first["colorization"] == unweighted["colorization"]
    torch.testing.assert_close(step.networks.colours_seen, target.double().sum(dim=(0, 2, 3)))
    expected = step.networks.colours_seen / step.networks.colours_seen.sum()
    torch.testing.assert_close(step.networks.prior(), expected)
    second, unweighted = step({"real": batch}), other({"real": batch})
    assert second["colorization"] != unweighted["colorization"]
    assert step.networks.colours_seen.sum() == pytest.approx(2 * 4 * 25, rel=1e-5)


def test_the_loss_begins_at_chance() -> None:
    step = method("colorization")
    assert step.chance(step.config) == {"colorization": pytest.approx(5.7462, abs=1e-4)}
    assert step({"real": random_photos(4)})["colorization"].item() == pytest.approx(math.log(313), rel=0.01)


def unweighted(logits: Tensor, target: Tensor) -> Tensor:
    large = torch.nn.functional.interpolate(logits, target.shape[2:], mode="bilinear")
    return bins_loss(large, target)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_colours_of_crops_that_were_not_trained_on_are_guessed_better_than_by_their_frequencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that was taught the colours of other photos knows their frequencies, and no more.

    Other crops of some of these photos were trained on: the 54 photos that are left teach no colours of others.
    """
    words = ["data.size=67", "train.steps=400", "loss.uniform=1.0"]
    found = held_out(trained("colorization", tmp_path / "run", *words), unweighted, times=1)
    with monkeypatch.context() as patched:
        shuffled(patched, Networks)
        run = trained("colorization", tmp_path / "shuffled", *words)
    assert found < held_out(run, unweighted, times=1) - MARGIN
