"""BiGAN: one step against gradients made by hand, and losses that begin at ln 2."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretext_steps import draws, method, random_photos

from fastssl.batch import IMAGE_MEAN


def test_both_losses_begin_at_chance() -> None:
    step = method("bigan")
    assert step.chance(step.config) == {
        name: pytest.approx(0.6931, abs=1e-4) for name in ("discriminator", "adversarial")
    }
    for loss in step({"real": random_photos(8)}).values():
        assert loss.item() == pytest.approx(math.log(2), rel=0.05)


def test_the_losses_are_cross_entropies_of_which_pair_is_a_photos() -> None:
    rng = np.random.default_rng(0)
    photos, made = rng.normal(size=(4, 1)), rng.normal(size=(4, 1))
    is_photo = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    given = {"photos": photos, "made": made, "photos_still": photos, "made_still": made}
    found = method("bigan").networks.losses({name: torch.tensor(x) for name, x in given.items()}, torch.ones(4))
    discriminator = (-np.log(is_photo(photos)).mean() - np.log(1 - is_photo(made)).mean()) / 2
    adversarial = (-np.log(1 - is_photo(photos)).mean() - np.log(is_photo(made)).mean()) / 2
    assert found["discriminator"].item() == pytest.approx(discriminator)
    assert found["adversarial"].item() == pytest.approx(adversarial)


def test_each_side_learns_from_its_own_loss_alone() -> None:
    """The gradients of a step, against those of two copies of the networks, each with one loss."""
    step, batch = method("bigan"), random_photos(4)
    networks, views = copy.deepcopy(step.networks), step.views(batch)[0]
    image, numbers = views
    photos, found, made = networks.small(image), networks.found(image), networks.generator(numbers)
    judge = networks.discriminator
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    bce = F.binary_cross_entropy_with_logits
    of_judge = (bce(judge(photos, found.detach()), ones) + bce(judge(made.detach(), numbers), zeros)) / 2
    of_makers = (bce(judge(photos, found), zeros) + bce(judge(made, numbers), ones)) / 2
    makers = [x for name, x in networks.named_parameters() if not name.startswith("discriminator")]
    expected = {"judge": torch.autograd.grad(of_judge, list(judge.parameters()), retain_graph=True)}
    expected["makers"] = torch.autograd.grad(of_makers, makers)
    losses = step.networks.losses(step.networks(views), torch.ones(4))
    own = list(step.networks.discriminator.parameters())
    others = [x for name, x in step.networks.named_parameters() if not name.startswith("discriminator")]
    total = losses["discriminator"] + losses["adversarial"]
    for gradients, group in ((expected["judge"], own), (expected["makers"], others)):
        largest = max(gradient.abs().max() for gradient in gradients)
        for found_gradient, gradient in zip(
            torch.autograd.grad(total, group, retain_graph=True), gradients, strict=True
        ):
            torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-5 * float(largest))


def test_numbers_are_uniform_from_minus_1_to_1_and_belong_to_the_position() -> None:
    networks = method("bigan").networks
    (image, numbers), _ = networks.views(random_photos(50), draws(50))
    assert image.shape == (50, 3, 67, 67)
    assert numbers.shape == (50, 20)
    assert numbers.min() >= -1
    assert numbers.max() < 1
    assert numbers.mean().abs() < 5 * (1 / 3 / 1000) ** 0.5
    assert numbers.var().item() == pytest.approx(1 / 3, rel=0.15)


def test_photos_and_images_that_are_made_have_one_form() -> None:
    networks = method("bigan").networks
    white = torch.ones(1, 3, 67, 67) - torch.tensor(IMAGE_MEAN)[:, None, None]
    torch.testing.assert_close(networks.small(white), torch.ones(1, 3, 64, 64))
    made = networks.generator(torch.zeros(2, 20))
    assert made.shape == (2, 3, 64, 64)
    assert made.abs().max() <= 1
