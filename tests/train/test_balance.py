"""Warnings of a discriminator that has won or lost, for made-up losses."""

from __future__ import annotations

import math

import pytest

from fastssl.methods import find_method, load_config
from fastssl.train.balance import Balance

CHANCE = 2 * math.log(2)


def told(fractions: list[float], caplog: pytest.LogCaptureFixture, **chance: float) -> list[str]:
    balance = Balance(chance)
    for line, fraction in enumerate(fractions, 1):
        balance.look({"loss/discriminator": fraction * CHANCE, "loss/depth": 1.0}, 10 * line)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ([0.01] * 60, [("won", 200)]),
        ([0.995] * 19 + [0.5] + [0.995] * 19, []),
        ([1.2] * 25, [("lost", 200)]),
        ([0.04] * 20 + [0.3] + [0.01] * 20, [("won", 200), ("won", 410)]),
        ([0.01] * 10 + [0.995] * 20, [("lost", 300)]),
        ([0.06, 0.98] * 50, []),
    ],
)
def test_once_for_each_long_imbalance(
    fractions: list[float], words: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    found = told(fractions, caplog, discriminator=CHANCE)
    assert [(line.split()[3].rstrip(":"), int(line.partition("step ")[2].partition(".")[0])) for line in found] == words
    assert all("optim.discriminator_lr" in line for line in found)


def test_a_method_without_a_discriminator_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not told([0.0] * 50, caplog)
    assert not told([0.0] * 50, caplog, discriminator=0.0)


def test_chance_is_the_method_s(caplog: pytest.LogCaptureFixture) -> None:
    """Half the weight, half the loss."""
    config = load_config("tiny", overrides=["loss.discriminator_weight=0.5"])
    chance = find_method(config.method).chance(config)
    assert not told([0.3] * 50, caplog, **chance)
    assert len(told([0.497] * 50, caplog, **chance)) == 1
