"""A running mean of the weights, which often measures better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Mean of the networks' weights over the last steps, with weights that fall exponentially.

    The decay of step n is at most (1 + n) / (10 + n), so that the beginning is soon forgotten. Statistics of batch
    norms are not averaged: they are means already.

    Source: Polyak & Juditsky, SIAM J. Control Optim. 1992; in exponential form Tarvainen & Valpola, NeurIPS 2017.

    Args:
        networks: on their device.
        decay: of a step, from 0 to below 1.
    """

    def __init__(self, networks: nn.Module, decay: float) -> None:
        self._weights = {name: weight.detach() for name, weight in networks.named_parameters()}
        self._means = {name: weight.clone() for name, weight in self._weights.items()}
        self._decay = decay

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take the weights as they are after a step, counted from 1, into the mean.

        Sync: none.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._means.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The means in the networks, in the place of their weights, which come back afterwards."""
        self._change_places()
        try:
            yield
        finally:
            self._change_places()

    @torch.no_grad()
    def _change_places(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._means[name])
            self._means[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The means, by the names that the networks have for their weights."""
        return self._means

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for name, mean in self._means.items():
            mean.copy_(state[name])


def load_average(networks: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replace the networks' weights by the means of a `WeightAverage`."""
    with torch.no_grad():
        for name, weight in networks.named_parameters():
            weight.copy_(state[name])
