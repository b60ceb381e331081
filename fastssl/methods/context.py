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
from fastssl.methods.views import cut, input_side

ROWS = 3
PATCHES = ROWS * ROWS
MIDDLE = PATCHES // 2
DIRECTIONS = PATCHES - 1
_NOISE = 1 / 255
"""From end to end of the noise in the place of a channel: a level of a byte."""
_NOISE_PLACES = 1 << 20
"""At which noise begins."""
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
    """Pixels on a side of such a small patch, at least."""

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
        hidden = self.config.model.hidden_channels
        self.side = input_side(self.backbone, max(1, round(self.config.views.patch * self.config.data.size)))
        self.pair = nn.Linear(2 * self.last_channels, hidden)
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.hidden = nn.Linear(hidden, hidden)
        self.direction = nn.Linear(hidden, DIRECTIONS)
        self.register_buffer("resizings", resizings(self.side, self.config.views.least_side), persistent=False)
        length = 3 * self.side**2 + _NOISE_PLACES - 1
        noise = Draws(0, torch.zeros(1, dtype=torch.int64)).uniform("context noise", length)[0]
        self.register_buffer("noise", (noise - 0.5) * _NOISE, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.direction, generator)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Patches (N, 9, 3, T, T), row by row, and the directions from the middle, (8 N,), pair by pair."""
        patches = self.one_channel(self.patches(batch.image.float(), draws), draws)
        return patches, torch.arange(DIRECTIONS, device=patches.device).repeat(len(patches))

    def patches(self, image: Tensor, draws: Draws) -> Tensor:
        """The patches of a grid at random in photos (N, 3, S, S), row by row, each moved a little; (N, 9, 3, T, T)."""
        views, size = self.config.views, image.shape[-1]
        length = views.patch * size
        corner = draws.uniform("context grid", 1, 2) * (1 - views.extent) * size
        place = torch.arange(PATCHES, device=image.device)
        cell = torch.stack([place // ROWS, place % ROWS], dim=1) * (length * (1 + views.gap))
        moved = draws.uniform("context jitter", PATCHES, 2) * (2 * views.jitter * length)
        top, left = (corner + cell + moved).unbind(dim=-1)
        return cut(image, top, left, length, self.side)

    def coarse(self, patches: Tensor, draws: Draws) -> Tensor:
        """Some patches made smaller, by any amount, and as large again."""
        below = len(self.resizings) - 1
        number = draws.integers("context side", below, PATCHES) if below else torch.zeros_like(patches[:, :, 0, 0, 0])
        is_coarse = draws.uniform("context coarse", PATCHES) < self.config.views.coarse
        matrix = self.resizings[torch.where(is_coarse, number, below).long()]
        return matrix[:, :, None] @ patches @ matrix[:, :, None].transpose(-1, -2)

    def one_channel(self, patches: Tensor, draws: Draws) -> Tensor:
        """One channel of each patch, (N, 9, 3, T, T), of some made coarse, less its mean, and noise in the place of the
        others; all of one contrast.

        The noise is a stretch of one long row of random numbers, from a place that is drawn.
        """
        channel = draws.integers("context channel", 3, PATCHES)
        kept = patches.gather(2, channel[..., None, None, None].expand(-1, -1, 1, *patches.shape[3:]))
        kept = self.coarse(kept, draws)
        place = draws.integers("context noise", _NOISE_PLACES, PATCHES)
        noise = self.noise.unfold(0, 3 * self.side**2, 1)[place].view(*place.shape, 3, self.side, self.side)
        own = F.one_hot(channel, 3)[..., None, None].bool()
        mixed = torch.where(own, kept - kept.mean(dim=(-2, -1), keepdim=True), noise)
        rms = mixed.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
        return mixed * (_CONTRAST / rms.clamp(min=_LEAST_RMS))

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


def resizings(side: int, least: int) -> Tensor:
    """Matrices that make a side smaller, to `least`, `least` + 1 ... pixels, and as long again; the last does nothing.

    Args:
        side: pixels.
        least: of the smallest; one that is larger than `side` is taken for it.

    Returns:
        (side - least + 1, side, side) float32. M x M^T resizes an image x (side, side) by areas and then linearly.
    """
    unit = torch.eye(side)[None]
    smaller = range(min(least, side), side)
    made = [F.interpolate(F.adaptive_avg_pool1d(unit, small), side, mode="linear")[0].T for small in smaller]
    return torch.stack([*made, unit[0]])


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
