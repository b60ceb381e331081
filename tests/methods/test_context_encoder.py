"""Context encoders: masks and the loss against NumPy, and photos that were not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pretext_steps import draws, held_out, method, random_photos, shuffled, trained
from torch import Tensor

from fastssl.losses import masked_loss
from fastssl.methods.context_encoder import Networks, above

MARGIN = 0.12
"""Of the error of the mean colour, by how much that of held-out crops is less. One seed reached 0.246, and 0.018
where it was taught to fill in others."""


def test_a_fifth_to_three_tenths_of_each_photo_are_hidden() -> None:
    hidden = method("context_encoder").networks.hidden(131, draws(300)).double()
    share = hidden.mean(dim=(1, 2, 3))
    assert share.min() >= 0.2 - 5 / 131**2
    assert share.max() <= 0.3
    assert share.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.15)
    assert hidden.mean(dim=0).min() > 0.05, "every place is hidden in some photos"
    assert hidden.mean(dim=0).max() < 0.6


def test_regions_are_large() -> None:
    """Of hidden pixels few have a neighbour that is seen; of as many single pixels, three in four would."""
    hidden = method("context_encoder").networks.hidden(131, draws(20))[:, 0].numpy()
    border = hidden[:, :, :-1] & ~hidden[:, :, 1:]
    assert border.sum() / hidden.sum() < 0.1


def test_the_highest_places_are_hidden_up_to_a_share() -> None:
    """Against sorting them; where all are alike, none is higher than the others."""
    noise = torch.rand(20, 1, 40, 50, generator=torch.Generator().manual_seed(0)) * 7 - 3
    share = torch.linspace(0.05, 0.6, 20)
    found = above(noise, share)
    for one, chosen, part in zip(noise, found, share, strict=True):
        count = int(chosen.sum())
        assert 2000 * part - 3 <= count <= 2000 * part
        assert one[chosen].min() > one[~chosen].max()
        assert one[chosen].min() == one.flatten().sort(descending=True).values[count - 1]
    assert not above(torch.ones(1, 1, 8, 8), torch.tensor([0.3])).any()


def test_hidden_pixels_have_the_mean_colour_and_others_are_as_they_were() -> None:
    step, batch = method("context_encoder"), random_photos(3)
    seen, target = step.views(batch)
    hidden = target[:, 3:] > 0
    assert torch.equal(target[:, :3], batch.image)
    assert torch.equal(seen, torch.where(hidden, torch.zeros(()), batch.image))


def test_only_hidden_pixels_count() -> None:
    rng = np.random.default_rng(0)
    prediction, image, mask = (
        rng.normal(size=(2, 3, 5, 5)),
        rng.normal(size=(2, 3, 5, 5)),
        rng.random((2, 1, 5, 5)) < 0.3,
    )
    hidden = np.broadcast_to(mask, image.shape)
    expected = ((prediction - image)[hidden] ** 2).mean()
    given = torch.tensor(prediction, requires_grad=True)
    loss = masked_loss(given, torch.tensor(image), torch.tensor(mask))
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, given)
    assert (gradient.numpy()[~hidden] == 0).all()
    assert (gradient.numpy()[hidden] != 0).all()


def test_the_gradient_of_the_loss_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, image = (torch.rand(2, 3, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 1, 3, 3, generator=generator) < 0.4
    assert torch.autograd.gradcheck(lambda x: masked_loss(x, image, mask), prediction.requires_grad_())


def test_what_is_hidden_does_not_reach_the_network() -> None:
    """Other colours below the mask, the same prediction."""
    step, batch = method("context_encoder"), random_photos(3)
    seen, target = step.views(batch)
    batch.image.add_(torch.where(target[:, 3:] > 0, 0.3, 0.0))
    again, _ = step.views(batch)
    assert torch.equal(seen, again)


def gain(filled: Tensor, target: Tensor) -> Tensor:
    """By what fraction each photo's hidden pixels are nearer than the mean colour of all photos, which is 0."""
    image, hidden = target[:, :3], (target[:, 3:] > 0).expand(-1, 3, -1, -1)
    own, mean = ((torch.where(hidden, one - image, 0.0) ** 2).sum(dim=(1, 2, 3)) for one in (filled, torch.zeros(())))
    return 1 - own / mean


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_crops_that_were_not_trained_on_are_filled_in_better_than_by_the_mean_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by a network that was taught to fill in other photos. Other crops of some of them were trained on."""
    words = ["data.size=67", "train.steps=300"]
    assert held_out(trained("context_encoder", tmp_path / "run", *words), gain) > MARGIN
    with monkeypatch.context() as patched:
        shuffled(patched, Networks)
        run = trained("context_encoder", tmp_path / "shuffled", *words)
    assert held_out(run, gain) < MARGIN
