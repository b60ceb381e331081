"""Split-brain: halves that share nothing, targets against NumPy, and photos that were not trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pretext_steps import held_out, method, random_photos, shuffled, trained
from torch import Tensor

from fastssl.errors import ConfigError
from fastssl.losses import bins_loss
from fastssl.methods import load_config
from fastssl.methods.colours import bins_near, chroma_bins, lab, soft_bins
from fastssl.methods.split_brain import Networks, halved

MARGIN = 0.1
"""By how much the losses of held-out crops are below those of a network that was taught other photos'. One seed reached
8.02, and the other 8.25. Other crops of some of these photos were trained on."""

ODD = {"timm:test_vit": "data.size=64", "alexnet": "model.fc_channels=17"}


@pytest.mark.parametrize(("backbone", "size"), [("alexnet", 67), ("vgg16", 64), ("resnet50", 64)])
def test_halves_share_nothing(backbone: str, size: int) -> None:
    """After some steps: no weight leads from one half to the other, and no loss has a gradient in the other's."""
    step = method("split_brain", f"model.backbone={backbone}", f"data.size={size}")
    for number in range(2):
        step({"real": random_photos(4, size, first=4 * number)})
    views, target = step.views(random_photos(4, size))
    losses = step.networks.losses(step.networks(views), target)
    weights = [x for x in step.backbone.parameters() if x.requires_grad]
    for name, own in (("colours", 0), ("lightness", 1)):
        gradients = torch.autograd.grad(losses[name], weights, retain_graph=True)
        norms = [[float(half.norm()) for half in gradient.chunk(2)] for gradient in gradients]
        assert all(pair[1 - own] == 0 for pair in norms)
        assert all(pair[own] > 0 for pair, weight in zip(norms, weights, strict=True) if weight.dim() > 1)


def test_one_half_sees_luma_and_the_other_differences_of_the_channels() -> None:
    """Also after steps: colours of one luma are one to the first half, and shades of gray are one to the second."""
    step = method("split_brain")
    for number in range(3):
        step({"real": random_photos(4, first=4 * number)})
    conv = step.backbone.layers["conv1"].conv
    image = random_photos(2).image
    other = image.clone()
    other[:, 0] += 0.1
    other[:, 1] -= 0.1 * 0.299 / 0.587
    brighter = image + 0.2
    with torch.no_grad():
        plain, of_other, of_brighter = (conv(x)[..., 3:-3, 3:-3].chunk(2, dim=1) for x in (image, other, brighter))
    torch.testing.assert_close(plain[0], of_other[0], rtol=0, atol=1e-5)
    assert (plain[1] - of_other[1]).abs().max() > 1e-2
    torch.testing.assert_close(plain[1], of_brighter[1], rtol=0, atol=1e-5)
    assert (plain[0] - of_brighter[0]).abs().max() > 1e-2


def test_halving_is_a_projection_and_leaves_what_is_halved() -> None:
    """Against matrices in NumPy."""
    rng = np.random.default_rng(0)
    first, deep = rng.normal(size=(6, 3, 2, 2)), rng.normal(size=(6, 4, 2, 2))
    luma = np.array([0.299, 0.587, 0.114])
    onto = np.outer(luma, luma) / (luma @ luma)
    expected = np.concatenate(
        [np.einsum("cd,odhw->ochw", onto, first[:3]), np.einsum("cd,odhw->ochw", np.eye(3) - 1 / 3, first[3:])]
    )
    np.testing.assert_allclose(halved(torch.tensor(first)).numpy(), expected, atol=1e-12)
    blocks = np.kron(np.eye(2), np.ones((3, 2)))[:, :, None, None]
    np.testing.assert_array_equal(halved(torch.tensor(deep)).numpy(), deep * blocks)
    np.testing.assert_allclose(halved(torch.tensor(expected)).numpy(), expected, atol=1e-12)


def test_targets_are_the_bins_of_colours_and_of_lightness() -> None:
    step, batch = method("split_brain", "views.stride=8"), random_photos(3)
    seen, target = step.views(batch)
    assert torch.equal(seen, batch.image)
    assert target.shape == (3, 413, 9, 9)
    places = lab(batch.image)[:, :, ::8, ::8]
    bins = torch.tensor(chroma_bins(), dtype=torch.float32)
    expected = soft_bins(places[:, 1:], bins, torch.tensor(bins_near(10)), 10, 5.0)
    torch.testing.assert_close(target[:, :313], expected)
    number = np.minimum(np.floor(places[:, 0].numpy()), 99).astype(int)
    np.testing.assert_array_equal(target[:, 313:].argmax(dim=1).numpy(), number)
    assert (target[:, 313:].sum(dim=1) == 1).all()


def test_the_losses_begin_at_the_chance_of_each_half() -> None:
    step = method("split_brain")
    assert step.chance(step.config) == {"colours": pytest.approx(5.7462, abs=1e-4), "lightness": math.log(100)}
    for name, loss in step({"real": random_photos(4)}).items():
        assert loss.item() == pytest.approx(step.chance(step.config)[name], rel=0.02)


@pytest.mark.parametrize("backbone", ODD)
def test_a_backbone_that_has_no_halves_is_refused(backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)two halves that share nothing.*model\.backbone"):
        load_config("tiny", method="split_brain", overrides=[f"model.backbone={backbone}", ODD[backbone]])


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_crops_that_were_not_trained_on_are_predicted_better_than_by_frequencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that was taught other photos' colours and lightness knows how frequent they are, and no more."""

    def loss(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        large = [torch.nn.functional.interpolate(x, target.shape[2:], mode="bilinear") for x in outputs]
        return bins_loss(large[0], target[:, :313]) + bins_loss(large[1], target[:, 313:])

    words = ["data.size=67", "train.steps=400"]
    found = held_out(trained("split_brain", tmp_path / "run", *words), loss, times=1)
    with monkeypatch.context() as patched:
        shuffled(patched, Networks)
        run = trained("split_brain", tmp_path / "shuffled", *words)
    assert found < held_out(run, loss, times=1) - MARGIN
