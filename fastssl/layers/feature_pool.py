"""A history of features, so that D is not shown those of the current step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastssl.errors import CheckpointError


class FeaturePool:
    """Up to `size` feature maps of earlier images of one domain, on the features' device.

    The maps of a batch are taken one after the other. While the pool is not full, a map is stored and handed on. Once
    it is full, a map is with probability 1/2 handed on untouched, and otherwise changes places with a stored map
    drawn at random. The order counts: a batch larger than the pool exchanges maps with earlier images of itself, as
    the authors' pool of 128 for batches of 224 does (docs/reproduction.md, section 4.8).

    Source: Shrivastava et al., CVPR 2017 (history of images), in the form of the authors' `ImagePool`
    (docs/reproduction.md, section 3.7).

    Args:
        size: maps held; 0 switches the pool off.
        generator: a CPU generator of this pool's own, the only source of its draws.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size = size
        self._generator = generator
        self._maps: Tensor | None = None

    def mix(self, features: Tensor) -> Tensor:
        """The batch, some of its maps exchanged for stored ones.

        Args:
            features: (N, C, H, W); not changed.

        Returns:
            (N, C, H, W), detached, with the strides and dtype of `features`.

        Sync: none. The draws are made on the host; only the resulting indices travel to the device.
        """
        features = features.detach()
        if self.size == 0:
            return features
        # Neither an empty tensor nor index_select below: both would undo channels-last.
        both = features if self._maps is None else torch.cat((self._maps.to(features), features))
        index = torch.cat(self._draw(len(both) - len(features), len(features)))
        if features.is_cuda:
            index = index.pin_memory()
        index = index.to(features.device, non_blocking=True)
        self._maps = both[index[len(features) :]]
        return both[index[: len(features)]]

    def _draw(self, held: int, count: int) -> tuple[Tensor, Tensor]:
        """Which of the `held` stored maps, followed by the `count` new ones, to hand on and which to keep."""
        swap = torch.rand(count, generator=self._generator) < 0.5
        slot = torch.randint(self.size, (count,), generator=self._generator)
        fills = torch.arange(count) < self.size - held
        slot = torch.where(fills, held + torch.arange(count), slot)
        # A slot's history: the map that it held, then every new map that was put into it, in order.
        slot = torch.cat((torch.arange(held), slot))
        written = torch.cat((torch.ones(held, dtype=torch.bool), fills | swap)).nonzero()[:, 0]
        history = written[slot[written].argsort(stable=True)]
        succeeds = slot[history][1:] == slot[history][:-1]
        handed_on = torch.arange(held + count)
        handed_on[history[1:][succeeds]] = history[:-1][succeeds]  # a new map gives place to the one before it
        kept = history[torch.cat((~succeeds, torch.ones(1, dtype=torch.bool)))]  # the last of every slot, by slot
        return handed_on[held:], kept

    def state_dict(self) -> dict[str, Any]:
        """Stored maps (None while there are none) and generator state; later steps leave it as it is."""
        return {"maps": self._maps, "generator": self._generator.get_state()}

    def load_states(self, states: Sequence[dict[str, Any]], *, rank: int, world_size: int) -> None:
        """Continue from the states of the pools of all ranks.

        Of as many ranks as there are now each goes on with its own pool, by the very same draws. Of another number the
        maps are dealt out in turn, as many as a pool holds; ranks that there were not before draw from their own seed.

        Args:
            states: by rank.
            rank: of this pool.
            world_size: number of ranks now.

        Raises:
            CheckpointError: as `load_state_dict`.
        """
        if len(states) == world_size:
            self.load_state_dict(states[rank])
            return
        generator = states[rank]["generator"] if rank < len(states) else self._generator.get_state()
        held = [state["maps"] for state in states if state["maps"] is not None]
        maps = torch.cat(held)[rank::world_size][: self.size] if held else None
        self.load_state_dict({"maps": None if maps is None or not len(maps) else maps, "generator": generator})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, with the very same draws.

        Raises:
            CheckpointError: the state holds more maps than this pool may.
        """
        maps: Tensor | None = state["maps"]
        if maps is not None and len(maps) > self.size:
            raise CheckpointError(
                "the checkpoint's feature pool is larger than this run's",
                where="optim.pool_size",
                seen=len(maps),
                expected=f"at most {self.size}",
                hint=f"set optim.pool_size to {len(maps)} or more, as the run had it",
            )
        self._maps = maps
        self._generator.set_state(state["generator"].cpu())
