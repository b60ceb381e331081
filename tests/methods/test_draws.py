"""Numbers of positions, against SplitMix64 in Python's whole numbers."""

from __future__ import annotations

import zlib

import torch

from fastssl.methods.draws import Draws

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalised(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def bits(seed: int, purpose: str, position: int, number: int) -> int:
    key = seed << 32 | zlib.crc32(purpose.encode())
    return finalised(finalised(position * GOLDEN + key & MASK) + (number + 1) * GOLDEN & MASK)


def test_splitmix_is_the_published_one() -> None:
    """Its first numbers from the state 1234567, as its authors' code gives them."""
    state, found = 1234567, []
    for _ in range(3):
        state = state + GOLDEN & MASK
        found.append(finalised(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_those_of_whole_number_arithmetic() -> None:
    positions = [0, 1, 7, 10**12]
    draws = Draws(12345, torch.tensor(positions))
    uniform, whole = draws.uniform("a", 2, 3), draws.integers("b", 9, 5)
    for place, position in enumerate(positions):
        assert uniform[place].flatten().tolist() == [(bits(12345, "a", position, n) >> 40) * 2.0**-24 for n in range(6)]
        assert whole[place].tolist() == [(bits(12345, "b", position, n) >> 32) * 9 >> 32 for n in range(5)]


def test_a_position_has_its_numbers_in_any_batch() -> None:
    joint = Draws(3, torch.arange(8)).uniform("x", 4)
    assert torch.equal(joint[5:], Draws(3, torch.arange(5, 8)).uniform("x", 4))


def test_seeds_purposes_and_positions_have_nothing_in_common() -> None:
    """Means, and correlations of neighbours, are within five standard errors of those of uniform numbers."""
    columns = [
        Draws(seed, torch.arange(20000) + first).uniform(purpose, 1)[:, 0].double() - 0.5
        for seed, purpose, first in ((0, "x", 0), (1, "x", 0), (0, "y", 0), (0, "x", 1))
    ]
    table = torch.stack(columns)
    limit = 5 / 20000**0.5
    assert (table.mean(dim=1).abs() < limit / 12**0.5).all()
    assert ((torch.corrcoef(table) - torch.eye(4)).abs() < limit).all()
    counts = Draws(0, torch.arange(20000)).integers("z", 5).bincount(minlength=5)
    assert ((counts - 4000).abs() < 5 * (4000 * 0.8) ** 0.5).all()
