"""Method `jigsaw`: Noroozi & Favaro, *Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles*, ECCV
2016.

A photo is cut into 3 x 3 tiles, which are laid in one of some orders, and the network learns which. It sees each tile
by itself and only then all together.

What would give the order away without any content is taken from the tiles: each lies at random in its cell, so that no
line goes on from one to the next; each colour channel lies a little elsewhere, so that the lens's chromatic aberration
does not tell the place; and each channel of each tile has its own mean and deviation taken out.

Numbers of the preset `paper` are those of the authors' release (its prototxt and solver). Deviations: the backbone is
this project's AlexNet, whose batch norms and fc6 and fc7 each tile passes; no dropout, which batch norms stand for; a
side of 243 pixels instead of 255, the nearest that this AlexNet takes and 256 pixels hold; a tile is resized from 61
to the 67 pixels that it takes. Not known: in which order the authors' search meets permutations of equal distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import permutations
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.backbones import Backbone
from fastssl.batch import Batch
from fastssl.config import Channels, Preset, Section
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import Pretext, PretextNetworks, SgdConfig, nearly_zero
from fastssl.methods.views import input_side, resized, standardised, windows

ROWS = 3
TILES = ROWS * ROWS


class ViewsConfig(Section):
    """What is made of a photo."""

    orders: Annotated[int, Field(ge=2, le=math.factorial(TILES))] = 100
    """Orders of the tiles that are told apart; the paper's later version has 1000."""
    tile: Annotated[float, Field(gt=0, lt=1)] = 64 / 85
    """Side of a tile as a fraction of its cell's; the rest is what it is moved by, at most."""
    channel_shift: Annotated[int, Field(ge=0)] = 2
    """Pixels by which a colour channel of a tile is moved, at most; never out of its cell."""


class ModelConfig(settings.BackboneSettings):
    """The backbone and the layers that put the tiles together."""

    tile_channels: Channels = 1024
    """What is kept of a tile before all are seen together."""
    hidden_channels: Channels = 4096
    first_stride: Annotated[int, Field(ge=0, le=16)] = 2
    """Stride of the backbone's first convolution while it sees tiles, which are small; 0 = its own, which evaluations
    have in any case, as the authors' do."""


class JigsawConfig(settings.Config):
    """Settings of the method."""

    method: Literal["jigsaw"] = "jigsaw"
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    optim: SgdConfig = SgdConfig()


PRESETS: dict[str, Preset] = {
    "paper": {
        "data": {"size": 243, "window": (243 / 256, 243 / 256), "batch_real": 256, "gray": "off"},
        "model": {"init_gain": 1.0},
        "optim": {"lr": 0.01, "drop_at": (100 / 350, 200 / 350, 300 / 350)},
        "train": {"steps": 350_000},
    },
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 131, "window": (0.6, 1.0), "batch_real": 16, "gray": "off"},
        "views": {"orders": 10},
        "model": {
            "width": 0.25, "fc_channels": 128, "tile_channels": 64, "hidden_channels": 128, "init_gain": 1.0,
            "first_stride": 0,
        },
        "optim": {"lr": 0.02},
        "train": {"steps": 600, "log_every": 10, "checkpoint_every": 300},
    },
}  # fmt: skip


@lru_cache
def far_orders(count: int) -> NDArray[np.int64]:
    """Orders of nine tiles that are far from each other, the same ones every time.

    The first is that of the photo. Each next one is the farthest, by the least Hamming distance, from those before it;
    of equals that with the largest sum of distances, and of these the first in the alphabet.

    Returns:
        (count, 9): the number of the tile that lies at each place.

    Source: the paper's section 4.2 (maximal Hamming distance), greedily.
    """
    every = np.array(list(permutations(range(TILES))), dtype=np.uint8)
    columns = np.ascontiguousarray(every.T)
    least, total = np.full(len(every), TILES, dtype=np.int32), np.zeros(len(every), dtype=np.int32)
    chosen = [0]
    while len(chosen) < count:
        distance = sum(column != column[chosen[-1]] for column in columns).astype(np.int32)
        least, total = np.minimum(least, distance), total + distance
        chosen.append(int(np.argmax(least * (TILES * count + 1) + total)))
    return every[chosen].astype(np.int64)


class Networks(PretextNetworks):
    """The backbone, which sees a tile, and layers that see what it says of all nine."""

    permutations: Tensor

    def build(self) -> None:
        model, views = self.config.model, self.config.views
        self.side = input_side(self.backbone, self._tile_length())
        self.tile = nn.Linear(self.last_channels, model.tile_channels)
        self.puzzle = nn.Linear(TILES * model.tile_channels, model.hidden_channels)
        self.order = nn.Linear(model.hidden_channels, views.orders)
        # Of the run: another version may search them in another way.
        self.register_buffer("permutations", torch.tensor(far_orders(views.orders).tolist()))

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.order, generator)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Tiles (N, 9, 3, T, T) in the order that the target (N,) numbers."""
        order = draws.integers("jigsaw order", len(self.permutations))
        places = self.places(batch.image.shape[-1], draws)
        laid = self.permutations[order][:, :, None, None].expand_as(places)
        return self.tiles(batch.image.float(), places.gather(1, laid)), order

    def places(self, size: int, draws: Draws) -> Tensor:
        """First row and column of each channel of each tile of photos of `size` pixels, row by row, (N, 9, 3, 2)."""
        cell = size // ROWS
        slack = cell - self._tile_length()
        shift = min(self.config.views.channel_shift, slack)
        moved = draws.integers("jigsaw place", slack - shift + 1, TILES, 1, 2)
        moved = moved + draws.integers("jigsaw channels", shift + 1, TILES, 3, 2)
        place = torch.arange(TILES, device=moved.device)
        return moved + cell * torch.stack([place // ROWS, place % ROWS], dim=1)[:, None]

    def tiles(self, image: Tensor, places: Tensor) -> Tensor:
        """The tiles of photos (N, 3, S, S) that begin at these places (N, 9, 3, 2), (N, 9, 3, T, T)."""
        top, left = places.unbind(dim=-1)
        return standardised(resized(windows(image, top, left, self._tile_length()), self.side))

    def forward(self, tiles: Tensor) -> Tensor:
        """Logits of the orders, (N, orders), of tiles (N, 9, 3, T, T)."""
        with first_stride(self.backbone, self.config.model.first_stride):
            described = self.described(tiles.flatten(0, 1))
        each = F.relu(self.tile(described)).view(len(tiles), -1)
        logits: Tensor = self.order(F.relu(self.puzzle(each)))
        return logits

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of the orders."""
        return {"jigsaw": F.cross_entropy(outputs.float(), target)}

    def _tile_length(self) -> int:
        length: int = max(1, round(self.config.views.tile * (self.config.data.size // ROWS)))
        return length


@contextmanager
def first_stride(backbone: Backbone, stride: int) -> Iterator[None]:
    """The backbone with another stride of its first convolution; 0 = its own."""
    convolution = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    own = convolution.stride
    convolution.stride = (stride, stride) if stride else own
    try:
        yield
    finally:
        convolution.stride = own


class Jigsaw(Pretext):
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "jigsaw"
    Config: ClassVar[type[settings.Config]] = JigsawConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return f"The network learnt in which of {config.views.orders} orders nine tiles of a photo were laid."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The loss of orders that are equally likely."""
        return {"jigsaw": math.log(config.views.orders)}
