"""Whether a discriminator and the network that it trains are still a match for each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

log = logging.getLogger(__name__)

_WON, _LOST = 0.05, 0.99
"""Fractions of the loss that a discriminator has which knows nothing."""
_LINES = 20
"""Lines of metrics in a row after which it is told."""

_WORDS = {
    "won": "the discriminator has won: its loss has been below %.0f %% of chance for %d lines of metrics, up to step "
    "%d. It tells all images apart, and its gradient teaches the network little. Lower optim.discriminator_lr, or "
    "raise loss.adversarial_weight",
    "lost": "the discriminator has lost: its loss has been above %.0f %% of chance for %d lines of metrics, up to step "
    "%d. Either the features of both domains are alike, which is the aim (fastssl eval domain: near 0.5), or it learns "
    "too slowly. Then raise optim.discriminator_lr, or lower loss.adversarial_weight",
}


class Balance:
    """Looks at the loss `discriminator` of any method that knows its chance, and warns once of each long imbalance."""

    def __init__(self, chance: Mapping[str, float]) -> None:
        self._chance = chance.get("discriminator", 0.0)
        self._side: Literal["won", "lost", ""] = ""
        self._lines = 0

    def look(self, values: Mapping[str, float], step: int) -> None:
        """Look at a line of metrics."""
        loss = values.get("loss/discriminator")
        if loss is None or self._chance <= 0:
            return
        fraction = loss / self._chance
        side: Literal["won", "lost", ""] = "won" if fraction < _WON else "lost" if fraction > _LOST else ""
        self._lines = self._lines + 1 if side == self._side else 1
        self._side = side
        if side and self._lines == _LINES:
            log.warning(_WORDS[side], 100 * (_WON if side == "won" else _LOST), _LINES, step)
