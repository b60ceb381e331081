"""A batch on its way to a step: what is known of it behind each stage.

Each stage leaves nothing of a batch in its locals once it has handed it on, so that a batch's memory goes when the
consumer drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastssl.errors import ShardError
from fastssl.loader.images import PendingImages
from fastssl.loader.plan import Views
from fastssl.loader.targets import PendingTargets, TargetFields


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fed:
    """A batch whose bytes went into the graph."""

    samples: tuple[int, ...]
    """Numbers of the samples, replacements included."""
    keys: tuple[str, ...]
    classes: tuple[int, ...]
    """-1 = none, or not asked for."""
    views: Views
    targets: PendingTargets | None
    """Targets that threads are making; None where a GPU makes them, or none are wanted."""
    images: PendingImages | None
    """Images that threads are making; None where the graph makes them."""
    damaged_image: ShardError | None
    """The error of an image that threads decoded for the graph; what the graph decodes fails there."""

    def error(self) -> ShardError | None:
        """The error of an image or a target block, of those that threads make; waits for these."""
        pending = (part.error() for part in (self.images, self.targets) if part is not None)
        return next((error for error in (self.damaged_image, *pending) if error is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """A batch whose images are there."""

    fed: Fed
    image: Tensor
    """(N, S, S, 3), as the network takes it; uint8 windows where threads made them for a GPU."""
    blocks: Tensor | None = None
    """(N, bytes) uint8 inflated blocks, where a GPU makes the targets."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """A batch with its targets."""

    fed: Fed
    image: Tensor
    """(N, S, S, 3), as the network takes it; uint8 windows that are still to be uploaded."""
    targets: TargetFields
    """Those that are wanted."""
