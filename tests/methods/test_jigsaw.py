"""Jigsaw puzzles: orders and tiles against NumPy, what must not give them away, and photos that were not trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pretext_steps import draws, held_out, is_right, method, random_photos, shuffled, trained

from fastssl.methods.jigsaw import Networks, far_orders, first_stride

MARGIN = 0.035
"""By how much orders of held-out photos are recognised more often than by chance, 0.1, in 480 puzzles: 2.5 standard
errors. One seed reached 0.169, and 0.090 where it was taught the orders of others."""


def distances(orders: np.ndarray) -> np.ndarray:
    return (orders[:, None] != orders).sum(axis=2)[np.triu_indices(len(orders), 1)]


def test_orders_are_farther_from_each_other_than_the_authors() -> None:
    """Theirs of 100 have a least distance of 2 and 8.08 on average; the first 100 of a widely used 1000: 4, 8.019."""
    orders = far_orders(100)
    assert orders.shape == (100, 9)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert distances(orders).min() >= 4
    assert distances(orders).mean() >= 8.0


def test_orders_are_chosen_greedily() -> None:
    """No order is farther from the first few, by the least distance, than the next one that is chosen."""
    orders = far_orders(8)
    rng = np.random.default_rng(0)
    for count in range(1, 8):
        chosen = (orders[:count] != orders[count]).sum(axis=1).min()
        others = np.stack([rng.permutation(9) for _ in range(2000)])
        assert chosen >= (orders[:count, None] != others).sum(axis=2).min(axis=0).max()


def test_orders_are_kept_with_the_run() -> None:
    step, later = method("jigsaw"), method("jigsaw")
    state = step.state_dict()
    np.testing.assert_array_equal(state["networks"]["permutations"].numpy(), far_orders(10))
    later.networks.permutations.zero_()
    later.load_state_dict(state)
    np.testing.assert_array_equal(later.networks.permutations.numpy(), far_orders(10))


def test_tiles_are_standardised_windows_of_their_cells_in_the_order_that_the_target_names() -> None:
    """By random photos, of which no two tiles are alike; tiles of 67 pixels of a cell of 70 are not resized."""
    step = method("jigsaw", "data.size=211", "views.tile=0.96", "views.channel_shift=2")
    networks, side = step.networks, 67
    assert networks.side == side
    batch = random_photos(5, 211)
    tiles, order = step.views(batch)
    corners = networks.places(211, draws(5))
    raw, pixels = networks.tiles(batch.image, corners), batch.image.double().numpy()
    for photo, tile, channel in np.ndindex(5, 9, 3):
        top, left = corners[photo, tile, channel].tolist()
        part = pixels[photo, channel, top : top + side, left : left + side]
        expected = (part - part.mean()) / part.std()
        np.testing.assert_allclose(raw[photo, tile, channel].numpy(), expected, atol=1e-4)
    for photo, number in enumerate(order.tolist()):
        for place, tile in enumerate(far_orders(10)[number]):
            assert torch.equal(tiles[photo, place], raw[photo, tile])
    assert len(set(order.tolist())) > 1
    assert tiles.mean(dim=(-2, -1)).abs().max() < 1e-3
    torch.testing.assert_close(tiles.var(dim=(-2, -1), correction=0), torch.ones(5, 9, 3), rtol=1e-3, atol=0)


def places(num: int, *overrides: str) -> tuple[torch.Tensor, int, int]:
    """(N, 9, 3, 2) rows and columns where tiles of photos of 243 pixels begin, the length of a tile and of a cell."""
    return method("jigsaw", "data.size=243", *overrides).networks.places(243, draws(num)), 61, 81


def test_tiles_lie_apart_by_a_random_gap_inside_their_cells() -> None:
    """No window leaves its cell, so none touches a line of another's; all places come, each about as often."""
    found, length, cell = places(300)
    number = torch.arange(9)
    inside = found - cell * torch.stack([number // 3, number % 3], dim=1)[:, None]
    assert inside.min() == 0
    assert inside.max() == cell - length
    counts = inside[:, :, 0].flatten().bincount(minlength=21)[2:19].double()
    assert (counts / counts.mean() - 1).abs().max() < 0.25
    gaps = found[:, 1, :, 1] - found[:, 0, :, 1] - length
    assert (gaps >= 0).all()
    assert gaps.double().mean() == pytest.approx(cell - length, rel=0.1)


def test_channels_of_a_tile_lie_apart_so_that_aberration_tells_nothing() -> None:
    """By 0 to 2 pixels, alike for every tile, whatever its place; not at all where the setting says so."""
    found, _, _ = places(400)
    apart = (found[:, :, 0] - found[:, :, 2]).double()
    assert set(apart.flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert apart.mean(dim=0).abs().max() < 5 * (4 / 3 / 400) ** 0.5
    together, _, _ = places(20, "views.channel_shift=0")
    assert (together == together[:, :, :1]).all()


def test_a_tile_is_the_part_of_the_photo_where_it_was_drawn() -> None:
    """Its length too: a photo whose rows and columns are numbered, of which 61 are resized to 67, as NumPy does."""
    networks = method("jigsaw", "data.size=243").networks
    found = networks.places(243, draws(1))
    rows, columns = torch.meshgrid(torch.arange(243.0), torch.arange(243.0), indexing="ij")
    tiles = networks.tiles(torch.stack([rows, rows, columns])[None], found)[0].double().numpy()
    line = np.interp((np.arange(67) + 0.5) * 61 / 67 - 0.5, np.arange(61), np.arange(61))
    standard = (line - line.mean()) / line.std()
    for tile in tiles:
        np.testing.assert_allclose(tile[0], np.tile(standard[:, None], 67), atol=1e-4)
        np.testing.assert_allclose(tile[2], np.tile(standard, (67, 1)), atol=1e-4)


def test_the_first_stride_is_another_while_tiles_are_seen() -> None:
    backbone = method("jigsaw").backbone
    image = torch.zeros(1, 3, 67, 67)
    own = backbone(image, until="conv1")["conv1"].shape[-1]
    with first_stride(backbone, 2):
        assert backbone(image, until="conv1")["conv1"].shape[-1] == 2 * own - 1
    assert backbone(image, until="conv1")["conv1"].shape[-1] == own


def test_the_loss_is_the_cross_entropy_of_the_orders_and_begins_at_chance() -> None:
    step = method("jigsaw", "views.orders=100")
    assert step.chance(step.config) == {"jigsaw": pytest.approx(4.6052, abs=1e-4)}
    logits, target = np.random.default_rng(0).normal(size=(4, 100)), np.array([3, 0, 99, 7])
    expected = np.mean([math.log(np.exp(row).sum()) - row[right] for row, right in zip(logits, target, strict=True)])
    found = step.networks.losses(torch.tensor(logits, dtype=torch.float32), torch.tensor(target))["jigsaw"]
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert step({"real": random_photos(4)})["jigsaw"].item() == pytest.approx(math.log(100), rel=0.05)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_puzzles_of_photos_that_were_not_trained_on_are_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by a network that was taught the orders of other photos."""
    assert (
        held_out(trained("jigsaw", tmp_path / "run", "train.steps=300", data=["real_train"]), is_right, times=8)
        > 0.1 + MARGIN
    )
    with monkeypatch.context() as patched:
        shuffled(patched, Networks)
        run = trained("jigsaw", tmp_path / "shuffled", "train.steps=300", data=["real_train"])
    assert held_out(run, is_right, times=8) < 0.1 + MARGIN
