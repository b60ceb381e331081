"""Method `rotation`: Gidaris, Singh & Komodakis, *Unsupervised Representation Learning by Predicting Image Rotations*,
ICLR 2018 (RotNet).

Every photo of a batch is turned by 0, 90, 180 and 270 degrees, and the network learns which turn it sees. It is learnt
from photos alone.

Numbers of the preset `paper` are those of the authors' release (`config/ImageNet_RotNet_AlexNet.py`). Deviations: the
backbone's channels are those of this project's AlexNet (theirs has 64, 192, 384, 256, 256 in its convolutions), and the
classifier reads the mean of the backbone's last map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from fastssl import config as settings
from fastssl.batch import IMAGE_MEAN, Batch
from fastssl.config import Preset
from fastssl.layers import xavier_initialise
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import Pretext, PretextNetworks, SgdConfig
from fastssl.optimizers import sgd
from fastssl.pictures import framed, grid, image_picture

TURNS = 4
_SHOWN = 6
"""Photos on a picture."""


class OptimConfig(SgdConfig):
    """SGD with Nesterov's momentum."""


class RotationConfig(settings.Config):
    """Settings of the method."""

    method: Literal["rotation"] = "rotation"
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    "paper": {
        # A random window of 8 to 100 % of the area and a ratio of 3:4 to 4:3, as torchvision's default has it.
        "data": {"batch_real": 192, "gray": "off", "window": (0.28, 1.0)},
        "augment": {"aspect": (3 / 4, 4 / 3)},
        "model": {"init_gain": 1.0},
        "optim": {"lr": 0.01, "drop_at": (0.3, 0.6, 0.9)},
        "train": {"epochs": 50},
    },
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 131, "window": (0.5, 1.0), "batch_real": 16, "gray": "off"},
        "model": {"width": 0.25, "fc_channels": 128, "init_gain": 1.0},
        "optim": {"lr": 0.02},
        "train": {"steps": 300, "log_every": 10, "picture_every": 100, "checkpoint_every": 150},
    },
}


class Networks(PretextNetworks):
    """The backbone and a linear classifier of the turns."""

    def build(self) -> None:
        self.classifier = nn.Linear(self.last_channels, TURNS)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from a generator."""
        xavier_initialise(self, self.config.model.init_gain, generator)
        nn.init.xavier_normal_(self.classifier.weight, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The photos in all turns, and the turns' numbers; nothing is drawn."""
        return turned(batch.image.float())

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the turns, (N, 4), of images (N, 3, S, S)."""
        logits: Tensor = self.classifier(self.described(image))
        return logits

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of the turns."""
        return {"rotation": F.cross_entropy(outputs.float(), target)}


def turned(image: Tensor) -> tuple[Tensor, Tensor]:
    """Every image in all four turns, and the turns' numbers.

    Args:
        image: (N, 3, S, S).

    Returns:
        (4 N, 3, S, S), the images not turned first, then those turned by 90, 180 and 270 degrees counterclockwise; and
        (4 N,) int64.
    """
    turns = torch.arange(TURNS, device=image.device).repeat_interleave(len(image))
    return torch.cat([torch.rot90(image, turn, (2, 3)) for turn in range(TURNS)]), turns


class Rotation(Pretext):
    """Networks and their optimizer, which a step changes."""

    name: ClassVar[str] = "rotation"
    caption: ClassVar[str] = (
        "Photos of a training batch as they are and turned by 90, 180 and 270 degrees. A green frame marks a turn that "
        "the network recognised."
    )
    Config: ClassVar[type[settings.Config]] = RotationConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "The network learnt by how much photos were turned: by 0, 90, 180 or 270 degrees."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The loss of four turns that are equally likely."""
        return {"rotation": math.log(TURNS)}

    def build_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """SGD with Nesterov's momentum."""
        optim, momentum = self.config.optim, self.config.optim.momentum
        return sgd(
            parameters,
            optim,
            self.context.device,
            lr=optim.lr,
            momentum=momentum,
            weight_decay=optim.weight_decay,
            nesterov=momentum > 0,
        )

    @torch.no_grad()
    def picture(self, batches: Mapping[str, Batch]) -> Image.Image:
        """The first photos in all turns; those that are recognised, in evaluation mode, are framed.

        Sync: waits for the predictions.
        """
        shown = batches["real"].image[:_SHOWN]
        image, turns = turned(shown)
        self.networks.eval()
        right = (self.networks(image).argmax(dim=1) == turns).cpu().view(TURNS, len(shown))
        self.networks.train()
        views = image.float().cpu().numpy().reshape(TURNS, len(shown), *image.shape[1:])
        rows = []
        for photo in range(len(shown)):
            row = [image_picture(views[turn, photo], IMAGE_MEAN) for turn in range(TURNS)]
            rows.append([framed(cell) if right[turn, photo] else cell for turn, cell in enumerate(row)])
        return grid(rows, [f"{90 * turn}\N{DEGREE SIGN}" for turn in range(TURNS)])
