"""Context prediction: patches against NumPy, what must not give them away, and photos that were not trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretext_steps import draws, held_out, is_right, method, random_photos, shuffled, trained

from fastssl.errors import ConfigError
from fastssl.methods import load_config
from fastssl.methods.context import Networks, resizings

SIDE = 243
MARGIN = 0.02
"""By how much directions in held-out crops are recognised more often than by chance, 0.125, in 3840 pairs: nearly four
standard errors. One seed reached 0.167, and 0.128 where it was taught the directions of others."""


def places(monkeypatch: pytest.MonkeyPatch, num: int) -> tuple[torch.Tensor, float]:
    """(N, 9, 2) first row and column of the patches, and their length."""
    seen = {}

    def noted(image: torch.Tensor, top: torch.Tensor, left: torch.Tensor, length: float, side: int) -> torch.Tensor:
        seen["places"], seen["length"] = torch.stack([top, left], dim=-1), length
        return torch.zeros(*top.shape, 3, side, side)

    monkeypatch.setattr("fastssl.methods.context.cut", noted)
    method("context", f"data.size={SIDE}", "views.patch=0.22").networks.patches(
        torch.zeros(num, 3, SIDE, SIDE), draws(num)
    )
    return seen["places"], seen["length"]


def test_patches_make_a_grid_with_gaps_and_jitter_inside_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes as the authors': patches of 96 pixels, 48 between them, each moved by up to 7 in each direction."""
    found, length = places(monkeypatch, 300)
    assert length == pytest.approx(0.22 * SIDE)
    assert found.min() >= 0
    assert found.max() + length <= SIDE
    place = torch.arange(9)
    cell = torch.stack([place // 3, place % 3], dim=1) * (length * (96 + 48) / 96)
    moved = found - cell
    apart = (moved[:, :, None] - moved[:, None]).abs()
    reach = 2 * 7 / 96 * length
    assert apart.max() <= reach + 1e-3
    assert apart.max() > 0.9 * reach
    gaps = found[:, 1, 1] - found[:, 0, 1] - length
    assert (gaps >= length * (48 - 14) / 96 - 1e-3).all()
    assert moved.mean(dim=0).std(dim=0).max() < 0.05 * length, "no direction is moved otherwise than the others"


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)views\.patch.*must fit into one"):
        load_config("tiny", method="context", overrides=["views.patch=0.3"])


def test_one_channel_is_left_of_a_patch() -> None:
    """Less its mean; the others hold noise of a level of a byte, and every patch has one contrast."""
    networks = method("context", "views.coarse=0.0").networks
    patches = torch.rand(6, 9, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    found = networks.one_channel(patches, draws(6)).double().numpy()
    np.testing.assert_allclose(np.sqrt((found**2).mean(axis=(2, 3, 4))), 50 / 255, rtol=1e-4)
    kept = (found**2).mean(axis=(3, 4)).argmax(axis=2)
    assert np.bincount(kept.ravel(), minlength=3).min() > 54 / 3 / 2
    for n, k in np.ndindex(6, 9):
        own = patches[n, k, kept[n, k]].double().numpy()
        own = own - own.mean()
        scale = found[n, k, kept[n, k]].std() / own.std()
        np.testing.assert_allclose(found[n, k, kept[n, k]], own * scale, atol=1e-5)
        noise = np.delete(found[n, k], kept[n, k], axis=0) / scale
        assert np.abs(noise).max() <= 0.5 / 255 * 1.001
        assert noise.std() == pytest.approx(1 / 255 / math.sqrt(12), rel=0.05)
        assert abs(np.corrcoef(noise.reshape(2, -1))[0, 1]) < 5 / 67


def test_the_kept_channel_tells_nothing_of_the_others() -> None:
    """With colours that a lens has moved apart: what the network sees is the same without the two that went."""
    networks = method("context").networks
    patches = torch.rand(4, 9, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    channel = draws(4).integers("context channel", 3, 9)
    other = torch.rand(4, 9, 3, 67, 67, generator=torch.Generator().manual_seed(1))
    mixed = torch.where(F.one_hot(channel, 3)[..., None, None].bool(), patches, other)
    assert torch.equal(networks.one_channel(patches, draws(4)), networks.one_channel(mixed, draws(4)))


def test_coarse_patches_are_means_of_areas_made_large_again() -> None:
    """Against torch's own resizing of images; about one in three is coarse, and the others are as they were."""
    networks = method("context", f"views.coarse={1 / 3}").networks
    side, image = networks.side, torch.rand(1, 2, 67, 67, generator=torch.Generator().manual_seed(0))
    matrices = resizings(side, 10)
    assert len(matrices) == 67 - 10 + 1
    for number, matrix in enumerate(matrices):
        small = F.adaptive_avg_pool2d(image, 10 + number)
        expected = F.interpolate(small, 67, mode="bilinear")
        torch.testing.assert_close(matrix @ image @ matrix.T, expected, rtol=1e-4, atol=1e-5)
    patches = torch.rand(200, 9, 1, 67, 67, generator=torch.Generator().manual_seed(0))
    touched = (networks.coarse(patches, draws(200)) != patches).flatten(2).any(dim=2).double()
    assert touched.mean() == pytest.approx(1 / 3, abs=5 * (2 / 9 / 1800) ** 0.5)
    assert torch.equal(method("context", "views.coarse=0.0").networks.coarse(patches, draws(200)), patches)


def test_pairs_are_the_middle_with_each_other_patch_in_the_order_of_directions() -> None:
    """By a backbone that says which patch it saw, and layers that hand it on."""
    networks = method("context").networks.eval()
    seen = {}
    networks.described = lambda images: images[:, :1, 0, 0]
    networks.pair.register_forward_pre_hook(lambda _, given: seen.update(pairs=given[0]))
    networks.pair = torch.nn.Linear(2, networks.pair.out_features)
    networks.pair.register_forward_pre_hook(lambda _, given: seen.update(pairs=given[0]))
    patches = torch.arange(18.0).view(2, 9, 1, 1, 1).expand(2, 9, 3, 67, 67)
    networks(patches)
    expected = [[4 + 9 * n, k + 9 * n] for n in range(2) for k in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert seen["pairs"].tolist() == expected
    _, target = networks.views(random_photos(2), draws(2))
    assert target.tolist() == [*range(8), *range(8)]


def test_the_loss_begins_at_chance() -> None:
    step = method("context")
    assert step.chance(step.config) == {"context": pytest.approx(2.0794, abs=1e-4)}
    assert step({"real": random_photos(4)})["context"].item() == pytest.approx(math.log(8), rel=0.03)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_directions_in_crops_that_were_not_trained_on_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by a network that was taught those of other pairs. Other crops of some photos were trained on."""
    assert held_out(trained("context", tmp_path / "run", "train.steps=600"), is_right, times=8) > 0.125 + MARGIN
    with monkeypatch.context() as patched:
        shuffled(patched, Networks)
        run = trained("context", tmp_path / "shuffled", "train.steps=600")
    assert held_out(run, is_right, times=8) < 0.125 + MARGIN
