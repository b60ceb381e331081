"""A batch on its way to a step: what is known of it behind each stage.

Each stage leaves nothing of a batch in its locals once it has handed it on, so that a batch's memory goes when the
consumer drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastssl.errors import ShardError
from fastssl.loader.labels import LabelFields, PendingLabels
from fastssl.loader.plan import Views


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fed:
    """A batch whose bytes went into the graph."""

    samples: tuple[int, ...]
    """Numbers of the samples, replacements included."""
    keys: tuple[str, ...]
    classes: tuple[int, ...]
    """-1 = none, or not asked for."""
    views: Views
    targets: PendingLabels | None
    """Planes that threads are making; None where a GPU makes them, or nobody."""

    def error(self) -> ShardError | None:
        """What went wrong with the planes, if threads make them; waits for these."""
        return None if self.targets is None else self.targets.error()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """A batch that came out of the graph."""

    fed: Fed
    image: Tensor
    """(N, S, S, 3), as the network takes it, or uint8 where `Pixels.decoded` leaves the rest to compiled code."""
    blocks: Tensor | None = None
    """(N, bytes) uint8 inflated blocks, where a GPU makes the planes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """A batch of which everything is made."""

    fed: Fed
    image: Tensor
    """(N, S, S, 3), as the network takes it."""
    targets: LabelFields
    """Of all planes; empty where none is wanted."""
