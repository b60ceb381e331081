"""Linear classifiers of every layer's map, trained side by side on frozen features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones import Backbone

DIMENSIONS = 9600
"""Of a map that a probe gets, at most, unless it has more channels than this."""
_EPSILON = 1e-5
_KEPT = 0.999
"""Of the running sums of a norm's statistics, at each step."""


class Schedule(NamedTuple):
    """How probes learn."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    drop_every: int
    drop_factor: float

    def lr_of(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0 on."""
        return self.lr * self.drop_factor ** (epoch // self.drop_every)

    def batches(self, count: int, epoch: int, seed: int) -> list[Tensor]:
        """Numbers of the images of an epoch in a random order, in batches of at most `batch_size`, of one size as far
        as can be: norms would make nothing of a batch of one."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))
        return list(order.tensor_split(math.ceil(count / self.batch_size)))


def side_of(channels: int, side: int) -> int:
    """The side to which a map is resized: as large as it may be with `DIMENSIONS`, and not larger than it is."""
    return max(1, min(side, math.isqrt(DIMENSIONS // channels)))


def tent_matrix(length: int, out: int) -> Tensor:
    """What makes `out` numbers of `length`: (out, length) float32.

    Where it makes them fewer, a tent filter comes first, of radius (length - 1) / (out - 1), with the ends repeated.
    The first and the last number lie on the first and the last, and those between are interpolated linearly. One
    number, for which there is no such radius, is the mean.

    Source: the resizing of Zhang et al., *Split-Brain Autoencoders*, CVPR 2017, by P. Kraehenbuehl's Caffe.
    """
    if out == 1:
        return torch.full((1, length), 1 / length)
    step = (length - 1) / (out - 1)
    smooth = torch.eye(length, dtype=torch.float64)
    if step > 1:
        reach = math.ceil(step)
        offsets = torch.arange(-reach, reach + 1)
        tent = (step - offsets.abs().double()).clamp(min=0)
        places = (torch.arange(length)[:, None] + offsets).clamp(0, length - 1)
        smooth = torch.zeros_like(smooth).scatter_add_(1, places, (tent / tent.sum()).expand(length, -1))
    place = torch.arange(out, dtype=torch.float64) * step
    before = place.floor().long().clamp(max=max(length - 2, 0))
    part = (place - before)[:, None]
    return ((1 - part) * smooth[before] + part * smooth[(before + 1).clamp(max=length - 1)]).float()


@torch.no_grad()
def resized_maps(backbone: Backbone, image: Tensor) -> dict[str, Tensor]:
    """The maps of all layers after their ReLU, of `side_of` each: by layer (N, C, s, s) float32."""
    maps = {}
    for layer, found in backbone(image).items():
        map_ = found.float().relu() if backbone.has_relu else found.float()
        rows, columns = (
            tent_matrix(length, side_of(map_.shape[1], length)).to(map_.device) for length in map_.shape[-2:]
        )
        maps[layer] = rows @ map_ @ columns.T
    return maps


class Norm(nn.Module):
    """A batch norm without scale and shift, whose statistics are means over its batches, late ones counting more."""

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        if self.training:
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            count = x.numel() // x.shape[1]
            with torch.no_grad():  # sums that are divided by that of their weights, as Caffe has them
                self.mean.mul_(_KEPT).add_(mean)
                self.variance.mul_(_KEPT).add_(variance * count / max(count - 1, 1))
                self.weight.mul_(_KEPT).add_(1)
        else:
            mean, variance = self.mean / self.weight, self.variance / self.weight
        return (x - mean[:, None, None]) / (variance[:, None, None] + _EPSILON).sqrt()


class Probes(nn.Module):
    """A norm and a linear layer for each map. They learn side by side, and none knows of another.

    Args:
        shapes: of the maps, by layer, (C, h, w).
        num_classes: that are told apart.
        schedule: how they learn.
    """

    def __init__(self, shapes: Mapping[str, Iterable[int]], num_classes: int, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule
        sizes = {layer: tuple(shape) for layer, shape in shapes.items()}
        self.norms = nn.ModuleDict({layer: Norm(size[0]) for layer, size in sizes.items()})
        self.linear = nn.ModuleDict({layer: nn.Linear(math.prod(size), num_classes) for layer, size in sizes.items()})
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)
        weights = [one.weight for one in self.linear.values()]
        biases = [one.bias for one in self.linear.values()]
        self._optimizer = torch.optim.SGD(
            [{"params": weights, "weight_decay": schedule.weight_decay}, {"params": biases, "weight_decay": 0}],
            lr=schedule.lr,
            momentum=schedule.momentum,
        )

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of the classes by layer, (N, K)."""
        return {layer: linear(self.norms[layer](maps[layer]).flatten(1)) for layer, linear in self.linear.items()}

    def learn(self, maps: Mapping[str, Tensor], classes: Tensor, epoch: int) -> None:
        """A step of all probes by a batch: maps (N, C, h, w) by layer, and classes (N,). Biases learn twice as fast."""
        lr = self._schedule.lr_of(epoch)
        for group, factor in zip(self._optimizer.param_groups, (1, 2), strict=True):
            group["lr"] = factor * lr
        self._optimizer.zero_grad()
        torch.stack([F.cross_entropy(scores, classes) for scores in self(maps).values()]).sum().backward()
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on besides its batch."""
        return {"probes": self.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.load_state_dict(state["probes"])
        self._optimizer.load_state_dict(state["optimizer"])
