"""Method `bigan`: Donahue, Krahenbuhl & Darrell, *Adversarial Feature Learning*, ICLR 2017.

A generator makes images of random numbers, an encoder finds numbers for photos, and a discriminator is shown pairs of
both: photos with their numbers found, and images made with the numbers that they were made of. Where it cannot tell
them apart, the encoder is the generator's inverse.

Numbers of the preset `paper` are those of the authors' release. Deviations: the encoder is this project's AlexNet with
batch norms and ReLU, where theirs has leaky ones, and a layer behind the mean of its last map finds the numbers; 115
pixels instead of 112. The generator and the discriminator are of DCGAN's form (Radford et al., ICLR 2016), as theirs
are, with channels of a setting of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fastssl import config as settings
from fastssl.batch import IMAGE_MEAN, Batch
from fastssl.config import BelowOne, Channels, NonNegative, Positive, Preset
from fastssl.losses import discriminator_loss
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import AdamConfig, Pretext, PretextNetworks
from fastssl.pictures import image_columns

SIDE = 64
"""Of the images that are made, and of the photos beside them."""
_SLOPE = 0.2
_DEVIATION = 0.02
"""Of the generator's and the discriminator's weights, as DCGAN's."""
_NOISES = 256
"""Channels of noise, of which one is drawn."""
_SHOWN = 6
"""Photos on a picture."""


class ModelConfig(settings.BackboneSettings):
    """The encoder, the generator and the discriminator."""

    numbers: Annotated[int, Field(ge=1, le=1 << 16)] = 200
    """Random numbers of an image, each from -1 to 1."""
    image_channels: Channels = 64
    """Of the largest maps of the generator and the discriminator; each smaller one has twice as many."""
    pair_channels: Channels = 1024
    """Of the layers that see an image and its numbers together."""
    image_noise: NonNegative = 0.0
    """Deviation of the noise on all images that the discriminator sees, which go from -1 to 1; the authors have none.
    It hides what tells a made image at a glance, so that few photos and steps are enough (Sonderby et al., *Amortised
    MAP Inference for Image Super-resolution*, ICLR 2017)."""


class OptimConfig(AdamConfig):
    """Adam for both sides."""

    lr: Positive = 2e-4
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)
    weight_decay: NonNegative = 2.5e-5


class BiganConfig(settings.Config):
    """Settings of the method."""

    method: Literal["bigan"] = "bigan"
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    "paper": {
        "data": {"size": 115, "window": (112 / 128, 112 / 128), "batch_real": 128, "gray": "off"},
        "model": {"init_gain": 1.0},
        # Over the second half it falls to a hundredth, by the same factor in each epoch.
        "optim": {"drop_at": tuple((50 + epoch) / 100 for epoch in range(50)), "drop_factor": 0.01 ** (1 / 50)},
        "train": {"epochs": 100},
    },
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 67, "window": (0.6, 1.0), "batch_real": 16, "gray": "off"},
        "model": {
            "width": 0.25, "fc_channels": 128, "init_gain": 1.0, "numbers": 10, "image_channels": 16,
            "pair_channels": 64, "image_noise": 0.5,
        },
        "optim": {"lr": 5e-4},
        "train": {"steps": 300, "log_every": 10, "picture_every": 100, "checkpoint_every": 150},
    },
}  # fmt: skip


class Generator(nn.Module):
    """From numbers (N, Z) to images (N, 3, 64, 64) in -1..1.

    Args:
        numbers: Z.
        channels: of the largest map.
    """

    def __init__(self, numbers: int, channels: int) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(numbers, 8 * channels, 4)
        modules: list[nn.Module] = [nn.BatchNorm2d(8 * channels), nn.ReLU()]
        for factor in (8, 4, 2):
            above = factor // 2 * channels
            modules += [nn.ConvTranspose2d(factor * channels, above, 4, 2, 1), nn.BatchNorm2d(above), nn.ReLU()]
        self.rest = nn.Sequential(*modules, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh())

    def forward(self, numbers: Tensor) -> Tensor:
        """See above."""
        made: Tensor = self.rest(self.first(numbers[:, :, None, None]))
        return made


class PairDiscriminator(nn.Module):
    """From images (N, 3, 64, 64) in -1..1 and numbers (N, Z) to logits (N, 1) that the image is a photo.

    Its batch norms keep no statistics: they always use those of the pairs that they see.

    Args:
        numbers: Z.
        channels: of the largest map.
        hidden: of the layers that see both.
    """

    def __init__(self, numbers: int, channels: int, hidden: int) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for factor in (1, 2, 4):
            above = 2 * factor * channels
            modules += [nn.Conv2d(factor * channels, above, 4, 2, 1), _norm(above), nn.LeakyReLU(_SLOPE)]
        self.image = nn.Sequential(*modules)
        self.numbers = nn.Sequential(nn.Linear(numbers, hidden), nn.LeakyReLU(_SLOPE))
        both = 8 * channels * 4 * 4 + hidden
        self.pair = nn.Sequential(nn.Linear(both, hidden), nn.LeakyReLU(_SLOPE), nn.Linear(hidden, 1))

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        """See above."""
        both = torch.cat([self.image(image).flatten(1), self.numbers(numbers)], dim=1)
        logits: Tensor = self.pair(both)
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Networks(PretextNetworks):
    """The encoder, of which the backbone is all but the last layer, the generator and the discriminator."""

    noise: Tensor

    def build(self) -> None:
        model = self.config.model
        self.encoder = nn.Linear(self.last_channels, model.numbers)
        self.generator = Generator(model.numbers, model.image_channels)
        self.discriminator = PairDiscriminator(model.numbers, model.image_channels, model.pair_channels)
        # From the middles of the intervals that uniform numbers stand for, so that none is 0 or 1.
        uniform = Draws(0, torch.arange(_NOISES)).uniform("bigan noise", SIDE, SIDE).double() + 2.0**-25
        self.register_buffer("noise", torch.special.ndtri(uniform).float() * model.image_noise, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for network in (self.generator, self.discriminator):
            for module in network.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    nn.init.normal_(module.weight, std=_DEVIATION, generator=generator)

    def views(self, batch: Batch, draws: Draws) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Inputs of both sides, and which of their pairs are photos', (N,).

        Photos as the encoder sees them (N, 3, S, S), random numbers (N, Z) in -1..1, and the noise (N, 2, 3, 64, 64)
        on what the discriminator sees: photos, and images that are made.
        """
        numbers = 2 * draws.uniform("bigan numbers", self.config.model.numbers) - 1
        which = draws.integers("bigan noise", len(self.noise), 2, 3)
        noise = self.noise.index_select(0, which.flatten()).view(*which.shape, SIDE, SIDE)
        return (batch.image.float(), numbers, noise), torch.ones(len(numbers), device=numbers.device)

    def small(self, image: Tensor) -> Tensor:
        """Photos (N, 3, S, S) as the discriminator sees them, (N, 3, 64, 64) in -1..1."""
        mean = torch.tensor(IMAGE_MEAN.tolist(), device=image.device)[:, None, None]
        small = F.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return 2 * (small + mean) - 1

    def found(self, image: Tensor) -> Tensor:
        """The numbers of photos (N, 3, S, S), (N, Z)."""
        numbers: Tensor = self.encoder(self.described(image))
        return numbers

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Logits (N, 1) that a pair is a photo's: of photos and of images that are made, once for each side.

        The discriminator's own have no gradient in what it is shown, and the others none in it. So both sides learn
        in one step, each from the other as it stood.
        """
        image, numbers, noise = views
        photos, made = self.small(image) + noise[:, 0], self.generator(numbers) + noise[:, 1]
        found = self.found(image)
        judge = self.discriminator
        still = {name: parameter.detach() for name, parameter in judge.named_parameters()}
        return {
            "photos": judge(photos, found.detach()),
            "made": judge(made.detach(), numbers),
            "photos_still": functional_call(judge, still, (photos, found)),
            "made_still": functional_call(judge, still, (made, numbers)),
        }

    def losses(self, outputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """What the discriminator pays for its mistakes, and encoder and generator for pairs that it tells apart.

        Each is the mean of two cross-entropies, of photos and of images that are made.
        """
        return {
            "discriminator": discriminator_loss(outputs["photos"], outputs["made"]) / 2,
            "adversarial": discriminator_loss(outputs["made_still"], outputs["photos_still"]) / 2,
        }


class Bigan(Pretext):
    """Holds what a step changes: networks and their optimizer, which is one, as both sides have the same numbers."""

    name: ClassVar[str] = "bigan"
    caption: ClassVar[str] = "Photos of a training batch, and what the generator makes of the numbers found for them."
    Config: ClassVar[type[settings.Config]] = BiganConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "The network learnt to find the random numbers of which a generator would make a photo."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The losses of a discriminator that cannot tell."""
        return {"discriminator": math.log(2), "adversarial": math.log(2)}

    @torch.no_grad()
    def picture(self, batches: Mapping[str, Batch]) -> Image.Image:
        """The first photos, small, and what is made of their numbers, in evaluation mode.

        Sync: waits for the images.
        """
        networks, image = self.networks, batches["real"].image[:_SHOWN].float()
        assert isinstance(networks, Networks)
        networks.eval()
        columns = {"photo": networks.small(image), "made": networks.generator(networks.found(image)).float()}
        networks.train()
        halved = {words: ((column + 1) / 2).cpu().numpy() for words, column in columns.items()}
        return image_columns(halved, np.zeros(3, np.float32))
