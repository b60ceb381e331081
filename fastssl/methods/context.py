"""Method `context`: Doersch, Gupta & Efros, *Unsupervised Visual Representation Learning by Context Prediction*, ICCV
2015.

Of a grid of patches of a photo the network sees two, one of them next to the other, and learns in which of eight
directions.

What would tell it without any content is taken from the patches: there are gaps between them and each is moved at
random, so that no line goes on from one to the next; only one colour channel is left of each, the others are noise, so
that the lens's chromatic aberration does not tell the place; and some are made smaller and larger again, so that noise
of the camera and its compression does not.

Numbers of the preset `paper` are those of the authors' release (`train.py`). Deviations: patches are a fraction of the
photo, whose sides are those of the packed images, and are resized to what the backbone takes; every photo gives one
grid of 3 x 3, of which the middle is compared with each of the others, where theirs gives four grids and all their
pairs; the backbone is this project's AlexNet, with batch norms that have weights, fc7 for each patch, and without
local response normalisation. Their loss is a sum over the pairs of a batch and ours their mean, so the learning rate
is theirs times the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.batch import Batch
from fastssl.config import BelowOne, Channels, Fraction, NonNegative, Preset, Section
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import Pretext, PretextNetworks, SgdConfig, nearly_zero
from fastssl.methods.views import input_side, windows

ROWS = 3
PATCHES = ROWS * ROWS
MIDDLE = PATCHES // 2
DIRECTIONS = PATCHES - 1
_NOISE = 1 / 255
"""From end to end of the noise in the place of a channel: a level of a byte."""
_NOISES = 256
"""Channels of noise, of which one is drawn."""
_CONTRAST = 50 / 255
"""Root mean square of a patch."""
_LEAST_RMS = 1e-3


class ViewsConfig(Section):
    """What is made of a photo."""

    patch: Annotated[float, Field(gt=0, lt=1)] = 0.22
    """Side of a patch as a fraction of the photo's; the authors' 96 pixels are 0.14 to 0.25 of theirs."""
    gap: NonNegative = 0.5
    """Between two patches, in sides of a patch."""
    jitter: Fraction = 7 / 96
    """By which a patch is moved at most, in each direction, in sides of a patch."""
    coarse: Fraction = 1 / 3
    """Probability that a patch is made smaller and as large again."""
    least_side: Annotated[int, Field(ge=1)] = 10
    """Pixels on a side of such a small patch, at least; one that is larger than a patch makes none smaller."""

    @model_validator(mode="after")
    def _check(self) -> ViewsConfig:
        if self.extent > 1:
            raise ValueError(
                f"views.patch, views.gap and views.jitter make a grid of {self.extent:.2f} photos; it must fit into one"
            )
        return self

    @property
    def extent(self) -> float:
        """Side of the grid as a fraction of the photo's, the jitter included."""
        return self.patch * (ROWS + (ROWS - 1) * self.gap + 2 * self.jitter)


class ModelConfig(settings.BackboneSettings):
    """The backbone and the layers that see two patches together."""

    hidden_channels: Channels = 4096


class OptimConfig(SgdConfig):
    """SGD, as the authors have it without momentum or weight decay."""

    momentum: BelowOne = 0.0
    weight_decay: NonNegative = 0.0


class ContextConfig(settings.Config):
    """Settings of the method."""

    method: Literal["context"] = "context"
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    "paper": {
        # 57 grids are the authors' 512 patches, and 456 pairs.
        "data": {"batch_real": 57, "gray": "off"},
        "model": {"init_gain": 1.0},
        "optim": {"lr": 1e-5 * 57 * DIRECTIONS, "schedule": "constant"},
        "train": {"steps": 1_700_000},
    },
    # Two CPU cores and a few minutes. Momentum and larger patches, of which few are made coarse, since steps are few.
    "tiny": {
        "data": {"size": 131, "window": (0.9, 1.0), "batch_real": 16, "gray": "off"},
        "views": {"patch": 0.24, "coarse": 0.1},
        "model": {"width": 0.25, "fc_channels": 128, "hidden_channels": 128, "init_gain": 1.0},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "train": {"steps": 600, "log_every": 10, "checkpoint_every": 300},
    },
}


class Networks(PretextNetworks):
    """The backbone, which sees a patch, and layers that see what it says of two."""

    resizings: Tensor
    noise: Tensor

    def build(self) -> None:
        views, hidden = self.config.views, self.config.model.hidden_channels
        # Whole pixels, rounded down, so that a grid fits as its fractions do.
        self.length = max(1, int(views.patch * self.config.data.size))
        self.spacing = int(self.length * (1 + views.gap))
        self.jitter = int(self.length * views.jitter)
        self.side = input_side(self.backbone, self.length)
        self.pair = nn.Linear(2 * self.last_channels, hidden)
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.hidden = nn.Linear(hidden, hidden)
        self.direction = nn.Linear(hidden, DIRECTIONS)
        self.register_buffer("resizings", resizings(self.length, self.side, views.least_side), persistent=False)
        noise = Draws(0, torch.arange(_NOISES)).uniform("context noise", self.side, self.side)
        self.register_buffer("noise", (noise - 0.5) * _NOISE, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.direction, generator)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Patches (N, 9, 3, T, T), row by row, and the directions from the middle, (8 N,), pair by pair."""
        channel = draws.integers("context channel", 3, PATCHES)
        places = self.places(batch.image.shape[-1], draws)
        patches = self.amid_noise(self.patches(batch.image.float(), channel, places, draws), channel, draws)
        return patches, torch.arange(DIRECTIONS, device=patches.device).repeat(len(patches))

    def places(self, size: int, draws: Draws) -> Tensor:
        """First row and column (N, 9, 2) of the patches, row by row, of a grid at random in photos of `size` pixels.

        Each is moved a little.
        """
        extent = self.length + (ROWS - 1) * self.spacing + 2 * self.jitter
        corner = draws.integers("context grid", size - extent + 1, 1, 2)
        moved = draws.integers("context jitter", 2 * self.jitter + 1, PATCHES, 2)
        place = torch.arange(PATCHES, device=moved.device)
        return corner + moved + self.spacing * torch.stack([place // ROWS, place % ROWS], dim=1)

    def patches(self, image: Tensor, channel: Tensor, places: Tensor, draws: Draws) -> Tensor:
        """One channel (N, 9) of each of the patches of photos (N, 3, S, S), (N, 9, T, T).

        Some are made smaller first, by any amount, and so have lost what is fine.
        """
        num, channels, size, _ = image.shape
        stacked = image.reshape(num, 1, channels * size, size)  # channels one below the other
        top, left = places.unbind(dim=-1)
        kept = windows(stacked, top + channel * size, left, self.length).view(-1, self.length, self.length)
        smaller = len(self.resizings) - 1
        is_coarse = draws.uniform("context coarse", PATCHES) < self.config.views.coarse
        number = torch.where(is_coarse, draws.integers("context side", max(smaller, 1), PATCHES), smaller)
        matrix = self.resizings.index_select(0, number.flatten())
        return (matrix @ kept @ matrix.transpose(1, 2)).view(num, PATCHES, self.side, self.side)

    def amid_noise(self, patches: Tensor, channel: Tensor, draws: Draws) -> Tensor:
        """One channel of each patch, (N, 9, T, T), less its mean, and noise in the place of the others.

        Returns:
            (N, 9, 3, T, T), all of one contrast.
        """
        own = (patches - patches.mean(dim=(-2, -1), keepdim=True)).flatten(0, 1)
        number = draws.integers("context noise", len(self.noise), PATCHES, 3)
        mixed = self.noise.index_select(0, number.flatten())
        first = 3 * torch.arange(len(own), device=own.device)
        mixed.index_copy_(0, first + channel.flatten(), own)
        mixed = mixed.view(*channel.shape, 3, self.side, self.side)
        rms = torch.linalg.vector_norm(mixed, dim=(-3, -2, -1), keepdim=True) / math.sqrt(3 * self.side**2)
        return mixed.mul_(_CONTRAST / rms.clamp(min=_LEAST_RMS))

    def forward(self, patches: Tensor) -> Tensor:
        """Logits of the directions, (8 N, 8), of patches (N, 9, 3, T, T): each photo's pairs in turn."""
        each = self.described(patches.flatten(0, 1)).view(len(patches), PATCHES, -1)
        others = torch.cat([each[:, :MIDDLE], each[:, MIDDLE + 1 :]], dim=1)
        both = torch.cat([each[:, MIDDLE : MIDDLE + 1].expand_as(others), others], dim=2).flatten(0, 1)
        logits: Tensor = self.direction(F.relu(self.hidden(F.relu(self.norm(self.pair(both))))))
        return logits

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of the directions."""
        return {"context": F.cross_entropy(outputs.float(), target)}


def resizings(length: int, side: int, least: int) -> Tensor:
    """Matrices that resize a patch, all but the last after they made it smaller, to `least`, `least` + 1 ... pixels.

    Args:
        length: of a side of the patch, in pixels.
        side: of what is returned.
        least: of the smallest; where it is not below `length`, none is made smaller.

    Returns:
        (max(length - least, 0) + 1, side, length) float32. M x M^T resizes a patch x (length, length) by areas and
        then linearly.
    """
    unit = torch.eye(length)[None]
    smaller = [F.adaptive_avg_pool1d(unit, pixels) for pixels in range(least, length)]
    return torch.stack([F.interpolate(small, side, mode="linear")[0].T for small in (*smaller, unit)])


class Context(Pretext):
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "context"
    Config: ClassVar[type[settings.Config]] = ContextConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "The network learnt in which of eight directions one patch of a photo lay from another."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The loss of eight directions that are equally likely."""
        return {"context": math.log(DIRECTIONS)}
