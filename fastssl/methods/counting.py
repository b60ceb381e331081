"""Method `counting`: Noroozi, Pirsiavash & Favaro, *Representation Learning by Learning to Count*, ICCV 2017.

The network counts something in a photo made smaller by half, and in each of its four quarters, which are as large: the
counts of the quarters have to sum to that of the whole, and to differ from that of another photo, lest nothing be
counted.

What would tell a photo made smaller from a part without counting is taken away: how it is made smaller is drawn for
each photo, and so is whether it is seen without colours.

Sources: the paper; a port that is not the authors', from which nothing is taken but the sizes: it cuts off the
distance to another photo for each number, which the paper does not. Deviations: the backbone is this project's
AlexNet, and counting is the layer behind the mean of its last map; photos of 227 pixels are resized to 230, whose
quarters have the 115 that it takes; filters that make a photo smaller lie between means of areas, a little sharpened,
and linear interpolation, where the paper draws one of four that have names. Not known, and so settings of our choice:
the learning rate, its optimizer and how often colours are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.batch import Batch
from fastssl.config import Channels, Fraction, NonNegative, Positive, Preset, Section
from fastssl.errors import ConfigError
from fastssl.losses import counting_loss
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import AdamConfig, Pretext, PretextNetworks, nearly_zero
from fastssl.methods.views import input_side, resized

PARTS = 4
_LUMA = (0.299, 0.587, 0.114)
_SHARP, _SOFT = -0.1, 0.25
"""Shares of the outer two of four pixels of which one is made."""


class ViewsConfig(Section):
    """What is made of a photo."""

    gray: Fraction = 0.5
    """Probability that a photo and its quarters are seen without colours; the paper tells none."""


class ModelConfig(settings.BackboneSettings):
    """The backbone and the layer that counts."""

    counts: Channels = 1000
    """Numbers that are counted."""


class LossConfig(Section):
    """What counts are to be."""

    margin: Positive = 10.0
    """Squared distance of the sum of the quarters from the counts of another photo, at least."""


class OptimConfig(AdamConfig):
    """Adam; the paper tells no optimizer that its sources agree on."""

    lr: Positive = 1e-4
    weight_decay: NonNegative = 0.0


class CountingConfig(settings.Config):
    """Settings of the method."""

    method: Literal["counting"] = "counting"
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    # Batch and length are our choice: none is known.
    "paper": {"data": {"batch_real": 128, "gray": "off"}, "model": {"init_gain": 1.0}, "train": {"epochs": 90}},
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 131, "window": (0.5, 1.0), "batch_real": 16, "gray": "off"},
        "model": {"width": 0.25, "fc_channels": 128, "init_gain": 1.0, "counts": 64},
        "optim": {"lr": 5e-4},
        "train": {"steps": 300, "log_every": 10, "checkpoint_every": 150},
    },
}


class Networks(PretextNetworks):
    """The backbone, and a layer that counts."""

    def build(self) -> None:
        self.side = input_side(self.backbone, -(-self.config.data.size // 2))
        self.counts = nn.Linear(self.last_channels, self.config.model.counts)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.counts, generator)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The whole photos and their quarters, (N, 5, 3, T, T), and for each photo the number of another, (N,)."""
        image = self.without_colours(resized(batch.image.float(), 2 * self.side), draws)
        views = image.new_empty(len(image), 1 + PARTS, 3, self.side, self.side)
        views[:, 0] = self.whole(image, draws)
        views[:, 1:].unflatten(1, (2, 2)).copy_(self.quarters(image))
        return views, torch.arange(len(image), device=image.device).roll(1)

    def without_colours(self, image: Tensor, draws: Draws) -> Tensor:
        """Some of the photos (N, 3, S, S) in black and white."""
        luma = torch.einsum("c,nchw->nhw", torch.tensor(_LUMA, device=image.device), image)[:, None]
        is_gray = (draws.uniform("counting gray") < self.config.views.gray).float()
        return torch.lerp(image, luma, is_gray[:, None, None, None])

    def whole(self, image: Tensor, draws: Draws) -> Tensor:
        """The photos (N, 3, 2 T, 2 T) made smaller, (N, 3, T, T), each by a filter of its own.

        Of four pixels in a row, and in a column, the two outer ones have a share that is drawn: 0 takes means of two
        by two pixels, 1/4 is linear interpolation without aliases, and less than 0 is sharp, as cubic curves are.
        """
        outer = _SHARP + (_SOFT - _SHARP) * draws.uniform("counting way")[:, None, None, None]
        return _halved(_halved(image, outer).transpose(2, 3), outer).transpose(2, 3) / 4

    def quarters(self, image: Tensor) -> Tensor:
        """The quarters of photos (N, 3, 2 T, 2 T), by row and column, (N, 2, 2, 3, T, T)."""
        return image.view(*image.shape[:2], 2, self.side, 2, self.side).permute(0, 2, 4, 1, 3, 5)

    def forward(self, views: Tensor) -> Tensor:
        """Counts, (N, 5, C) and none below 0, of views (N, 5, 3, T, T)."""
        return F.relu(self.counts(self.described(views.flatten(0, 1)))).view(*views.shape[:2], -1)

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """How far the quarters are from the whole, and how much too near to another photo."""
        whole, parts = outputs[:, 0], outputs[:, 1:]
        equal, different = counting_loss(whole, parts, whole[target], self.config.loss.margin)
        return {"counting": equal + different}


def _halved(image: Tensor, outer: Tensor) -> Tensor:
    """Twice the images (N, 3, H, W) with half as many rows, each of four rows of which the outer two have a share."""
    rows = image.shape[2]
    padded = F.pad(image, (0, 0, 1, 1), mode="replicate")
    above, upper, lower, below = (padded[:, :, first : first + rows : 2] for first in range(4))
    return torch.lerp(upper + lower, above + below, outer)


class Counting(Pretext):
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "counting"
    Config: ClassVar[type[settings.Config]] = CountingConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @classmethod
    def check(cls, config: Any) -> None:
        """As every method's; a single photo has no other beside it.

        Raises:
            ConfigError: see above.
        """
        if config.data.batch_real < 2:
            raise ConfigError("a photo is compared with another of its batch", where="data.batch_real", seen=1,
                              expected="2 or more")  # fmt: skip
        super().check(config)

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "The network learnt to count so that the counts of the quarters of a photo sum to those of the photo."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The loss of a network that counts nothing in any photo."""
        return {"counting": config.loss.margin}
