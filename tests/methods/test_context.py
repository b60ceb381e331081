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


def test_patches_make_a_grid_with_gaps_and_jitter_inside_the_photo() -> None:
    """Sizes as the authors': patches of 96 pixels, 48 between them, each moved by up to 7 in each direction.

    Here they are 53 (0.22 of 243), 26 (79 from one to the next) and 3.
    """
    networks = method("context", f"data.size={SIDE}", "views.patch=0.22").networks
    assert networks.length == 53
    found = networks.places(SIDE, draws(400))
    assert found.min() == 0
    assert found.max() + 53 == SIDE
    place = torch.arange(9)
    moved = (found - 79 * torch.stack([place // 3, place % 3], dim=1)).double()
    apart = (moved[:, :, None] - moved[:, None]).abs()
    assert apart.max() == 2 * 3
    assert (found[:, 1, 1] - found[:, 0, 1] - 53).min() >= 26 - 6
    assert moved.mean(dim=0).std(dim=0).max() < 0.05 * 53, "no direction is moved otherwise than the others"


@pytest.mark.parametrize(("size", "patch"), [(131, 0.24), (227, 0.22), (67, 0.2), (99, 0.241)])
def test_grids_of_all_sizes_lie_inside_the_photo(size: int, patch: float) -> None:
    networks = method("context", f"data.size={size}", f"views.patch={patch}").networks
    found = networks.places(size, draws(300))
    assert found.min() >= 0
    assert found.max() + networks.length <= size


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)views\.patch.*must fit into one"):
        load_config("tiny", method="context", overrides=["views.patch=0.3"])


def test_one_channel_is_left_of_a_patch() -> None:
    """Less its mean; the others hold noise of a level of a byte, and every patch has one contrast."""
    networks = method("context").networks
    patches = torch.rand(6, 9, 67, 67, generator=torch.Generator().manual_seed(0))
    channel = draws(6).integers("context channel", 3, 9)
    found = networks.amid_noise(patches, channel, draws(6)).double().numpy()
    np.testing.assert_allclose(np.sqrt((found**2).mean(axis=(2, 3, 4))), 50 / 255, rtol=1e-4)
    kept = (found**2).mean(axis=(3, 4)).argmax(axis=2)
    np.testing.assert_array_equal(kept, channel.numpy())
    assert np.bincount(kept.ravel(), minlength=3).min() > 54 / 3 / 2
    for n, k in np.ndindex(6, 9):
        own = patches[n, k].double().numpy()
        own = own - own.mean()
        scale = found[n, k, kept[n, k]].std() / own.std()
        np.testing.assert_allclose(found[n, k, kept[n, k]], own * scale, atol=1e-5)
        noise = np.delete(found[n, k], kept[n, k], axis=0) / scale
        assert np.abs(noise).max() <= 0.5 / 255 * 1.001
        assert noise.std() == pytest.approx(1 / 255 / math.sqrt(12), rel=0.05)
    others = np.delete(found[0], 0, axis=0).reshape(8 * 3, -1)
    alike = np.abs(np.corrcoef(others)) > 5 / 67
    assert alike.sum() < 24 + 8, "noise of one channel is that of few others"


def test_the_kept_channel_is_all_that_is_seen() -> None:
    """With colours that a lens has moved apart: what the network sees is the same without the two that went."""
    networks = method("context").networks
    channel = draws(4).integers("context channel", 3, 9)
    places = networks.places(67, draws(4))
    image, others = (torch.rand(4, 3, 67, 67, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for kept in range(3):
        mixed = others.clone()
        mixed[:, kept] = image[:, kept]
        is_kept = channel == kept
        found, expected = (networks.patches(x, channel, places, draws(4))[is_kept] for x in (mixed, image))
        assert len(found)
        assert torch.equal(found, expected)


def test_patches_are_parts_of_their_photo_resized() -> None:
    """Against torch's own resizing of what Python's brackets cut out."""
    networks = method("context", "views.coarse=0.0").networks
    channel, places = draws(3).integers("context channel", 3, 9), networks.places(67, draws(3))
    image = torch.rand(3, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    found, length = networks.patches(image, channel, places, draws(3)), networks.length
    for n, k in np.ndindex(3, 9):
        top, left = places[n, k].tolist()
        part = image[n, channel[n, k], top : top + length, left : left + length]
        expected = F.interpolate(part[None, None], networks.side, mode="bilinear")[0, 0]
        torch.testing.assert_close(found[n, k], expected, rtol=0, atol=1e-5)


def test_coarse_patches_are_means_of_areas_made_large_again() -> None:
    """Against torch's own resizing of images; about one in three is coarse, and the others are as they were."""
    image = torch.rand(1, 2, 31, 31, generator=torch.Generator().manual_seed(0))
    matrices = resizings(31, 67, 10)
    assert len(matrices) == 31 - 10 + 1
    for number, matrix in enumerate(matrices):
        small = F.adaptive_avg_pool2d(image, 10 + number) if number < len(matrices) - 1 else image
        expected = F.interpolate(small, 67, mode="bilinear")
        torch.testing.assert_close(matrix @ image @ matrix.T, expected, rtol=1e-4, atol=1e-5)
    assert len(resizings(31, 67, 40)) == 1
    some, none = (method("context", "data.size=131", f"views.coarse={share}").networks for share in (1 / 3, 0.0))
    image = torch.rand(100, 3, 131, 131, generator=torch.Generator().manual_seed(0))
    given = image, draws(100).integers("context channel", 3, 9), some.places(131, draws(100)), draws(100)
    touched = (some.patches(*given) != none.patches(*given)).flatten(2).any(dim=2).double()
    assert touched.mean() == pytest.approx(1 / 3, abs=5 * (2 / 9 / 900) ** 0.5)


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
