"""Reading of a step's samples, and the start of work on them: by threads here, or by a domain's graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from fastssl.loader.damage import Damage
from fastssl.loader.graph import Input, Pixels
from fastssl.loader.images import ThreadedImages
from fastssl.loader.plan import Step
from fastssl.loader.targets import ThreadedTargets
from fastssl.loader.underway import Fed
from fastssl.loader.windows import ThreadedWindows
from fastssl.ranges import traced


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feed:
    """A function that reads the plan's next step, lets threads begin on it and gives the graph the rest.

    It is called ahead of need, so reading, inflating and decoding of a step go on while the one before is trained on.
    """

    steps: Iterator[Step]
    damage: Damage
    """The reader of the samples."""
    pixels: Pixels
    targets: ThreadedTargets | None = None
    """Threads that make the targets, where the CPU does."""
    images: ThreadedImages | None = None
    """Threads that make the images, where no graph does."""
    windows: ThreadedWindows | None = None
    """Threads that decode the images, where the graph does not."""
    sends_blocks: bool = False
    """The graph gets the target blocks too, where a GPU makes the targets."""
    pending: deque[Fed] = field(default_factory=deque, init=False)
    """Batches that are not made yet, the oldest first."""

    def __call__(self) -> tuple[Input, ...]:
        samples, views = next(self.steps)
        with traced("loader: read"):
            found = self.damage.read(samples.tolist())
        members = [sample.stored.members for sample in found]
        stored, pending, damaged = [member[self.damage.image_member] for member in members], None, None
        inputs: list[Input] = []
        if self.images is not None:
            pending = self.images.submit(stored, views)
        elif self.windows is not None:
            pixels, damaged = self.windows.decode(stored, views)
            inputs = [pixels, *self.pixels.inputs(views)]
        else:
            inputs = [stored, *self.pixels.inputs(views)]
        targets = None
        if self.targets is not None or self.sends_blocks:
            blocks = [member[self.damage.target_member] for member in members]
            if self.sends_blocks:
                inputs.append(blocks)
            if self.targets is not None:
                targets = self.targets.submit(blocks, views)
        fed = Fed(
            samples=tuple(sample.number for sample in found),
            keys=tuple(sample.stored.key for sample in found),
            classes=tuple(sample.stored.class_index for sample in found),
            views=views,
            targets=targets,
            images=pending,
            damaged_image=damaged,
        )
        self.pending.append(fed)
        return tuple(inputs)

    def again(self) -> Feed | None:
        """A feed of the oldest batch alone, which failed, without its damaged samples; None if none is at fault."""
        if not self.pending:
            return None
        failed = self.pending.popleft()
        if not self.damage.examine(failed.samples):
            return None
        return replace(self, steps=iter([(np.array(failed.samples), failed.views)]))
