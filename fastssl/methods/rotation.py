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
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.backbones import Backbone, build_backbone
from fastssl.batch import IMAGE_MEAN, Batch
from fastssl.config import BelowOne, NonNegative, Preset
from fastssl.layers import xavier_initialise
from fastssl.loader import DomainRequest
from fastssl.methods.method import StepContext
from fastssl.optimizers import restore, sgd
from fastssl.pictures import framed, grid, image_picture

TURNS = 4
_SHOWN = 6
"""Photos on a picture."""


class OptimConfig(settings.OptimSettings):
    """SGD with Nesterov's momentum."""

    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 5e-4


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


class Networks(nn.Module):
    """The backbone and a linear classifier of the turns."""

    def __init__(self, model: settings.BackboneSettings) -> None:
        super().__init__()
        self.backbone: Backbone = build_backbone(model)
        self.classifier = nn.Linear(self.backbone.feature_info[self.backbone.last].channels, TURNS)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the turns, (N, 4), of images (N, 3, S, S)."""
        logits: Tensor = self.classifier(self.backbone(image)[self.backbone.last].mean(dim=(2, 3)))
        return logits


def build_networks(model: settings.BackboneSettings, seed: int) -> Networks:
    """Networks on the CPU, freshly initialised from `seed` alone; torch's global generator stays as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # torch's modules draw a default initialisation, which is overwritten
        networks = Networks(model)
    xavier_initialise(networks, model.init_gain, generator)
    nn.init.xavier_normal_(networks.classifier.weight, generator=generator)
    nn.init.zeros_(networks.classifier.bias)
    return networks


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


class Rotation:
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "rotation"
    unit: ClassVar[str] = "images"
    caption: ClassVar[str] = (
        "Photos of a training batch as they are and turned by 90, 180 and 270 degrees. A green frame marks a turn that "
        "the network recognised."
    )
    Config: ClassVar[type[settings.Config]] = RotationConfig
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def domains(config: RotationConfig) -> tuple[DomainRequest, ...]:
        """Photos, and nothing beside them."""
        return (DomainRequest(name="real"),)

    @staticmethod
    def check(config: RotationConfig) -> None:
        """Pass images without content through a backbone without content: its name, layers and sizes are checked.

        Raises:
            ConfigError: there is no such backbone, or it has no such layer or cannot take images of this size.
        """
        with torch.device("meta"):
            build_backbone(config.model)(torch.empty(2, 3, config.data.size, config.data.size))

    @staticmethod
    def describe(config: RotationConfig) -> str:
        """What is learnt with these settings."""
        return "The network learnt by how much photos were turned: by 0, 90, 180 or 270 degrees."

    @staticmethod
    def chance(config: RotationConfig) -> dict[str, float]:
        """The loss of four turns that are equally likely."""
        return {"rotation": math.log(TURNS)}

    def __init__(self, config: RotationConfig, context: StepContext) -> None:
        self.config, self.context = config, context
        self.networks = context.placed(build_networks(config.model, config.train.seed))
        optim = config.optim
        self.optimizer = sgd(
            [*self.backbone.trained_parameters(), *self.networks.classifier.parameters()],
            optim,
            context.device,
            lr=optim.lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.momentum > 0,
        )
        context.trains(self.optimizer)

    @property
    def backbone(self) -> Backbone:
        """The network whose features are wanted."""
        return self.networks.backbone

    @property
    def compared_layer(self) -> str:
        """The backbone's own choice."""
        return self.backbone.compared

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Learn the turns of one batch of photos.

        Args:
            batches: `real` photos.

        Returns:
            `rotation`: the cross-entropy of the turns, a scalar on the device.

        Sync: none.
        """
        image, turns = turned(batches["real"].image)
        with self.context.precision():
            logits = self.networks(image)
        loss = F.cross_entropy(logits.float(), turns)
        self.context.backward(loss)
        self.context.update(self.optimizer)
        self.context.finish()
        return {"rotation": loss.detach()}

    def begin_step(self, number: int, lr_factor: float) -> None:
        """Multiply the configured learning rate by `lr_factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optim.lr * lr_factor

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

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, besides its batches and the context."""
        return {"networks": self.networks.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; raises what its parts raise where the shapes differ."""
        self.networks.load_state_dict(state["networks"])
        restore(self.optimizer, state["optimizer"])

    def rank_state_dict(self) -> dict[str, Any]:
        """Nothing: all ranks are alike."""
        return {}

    def load_rank_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Nothing to do."""
