"""Method `context_encoder`: Pathak, Krahenbuhl, Donahue, Darrell & Efros, *Context Encoders: Feature Learning by
Inpainting*, CVPR 2016.

Random regions of a photo are hidden, a fifth to three tenths of it, and the network learns to fill them in.

Numbers of the preset `paper` are those of the authors' release (its README's command for features). Deviations: it
reconstructs alone, as the features that were published did, without the adversarial 0.001 of their inpainting; the
backbone is this project's AlexNet up to fc7, whose fc6 sees the whole photo, in the place of pool5 and a fully
connected layer for each channel; hidden pixels have the mean colour. Their regions are noise that is made smooth and
cut off at a density, and drawn again until the share fits; ours are cut off where the share is one that is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.batch import IMAGE_MEAN, Batch
from fastssl.config import BelowOne, Channels, Positive, Preset, Section
from fastssl.losses import masked_loss
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import AdamConfig, Pretext, PretextNetworks
from fastssl.pictures import image_columns

_LEVELS = 1 << 16
"""Of noise, by which places are hidden."""
_SHOWN = 6
"""Photos on a picture."""


class ViewsConfig(Section):
    """What is hidden of a photo."""

    least_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Smallest part of a photo that is hidden."""
    largest_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    resolution: Annotated[float, Field(gt=0, le=1)] = 0.06
    """Side of the noise that regions are made of, as a fraction of the photo's; smaller = larger regions."""

    @model_validator(mode="after")
    def _check(self) -> ViewsConfig:
        if self.least_share > self.largest_share:
            raise ValueError(f"views.least_share is {self.least_share}; it must be at most views.largest_share")
        return self


class ModelConfig(settings.BackboneSettings):
    """The backbone and what fills in."""

    decoder_channels: Channels = 64
    """Of the largest of the maps that lead back to the photo's size; each smaller one has twice as many, up to 512."""


class OptimConfig(AdamConfig):
    """Adam, as the authors have it."""

    lr: Positive = 2e-3
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)


class ContextEncoderConfig(settings.Config):
    """Settings of the method."""

    method: Literal["context_encoder"] = "context_encoder"
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    # The learning rate is 2e-4, ten times as large for what reconstructs. The length is our choice: none is known.
    "paper": {"data": {"batch_real": 64, "gray": "off"}, "model": {"init_gain": 1.0}, "train": {"epochs": 100}},
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 131, "window": (0.5, 1.0), "batch_real": 16, "gray": "off"},
        "model": {"width": 0.25, "fc_channels": 128, "decoder_channels": 16, "init_gain": 1.0},
        "train": {"steps": 300, "log_every": 10, "picture_every": 100, "checkpoint_every": 150},
    },
}


class Networks(PretextNetworks):
    """The backbone, and transposed convolutions that lead from its last map back to the photo's size."""

    def build(self) -> None:
        info, widest = self.backbone.feature_info[self.backbone.last], self.config.model.decoder_channels
        modules: list[nn.Module] = []
        below, stride = info.channels, info.stride
        while stride > 1:
            stride //= 2
            above = min(512, widest * max(1, stride))
            modules += [nn.ConvTranspose2d(below, above, 4, stride=2, padding=1), nn.BatchNorm2d(above), nn.ReLU()]
            below = above
        self.decoder = nn.Sequential(*modules, nn.Conv2d(below, 3, 3, padding=1))

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The photos with hidden regions (N, 3, S, S), and the photos and where they are hidden (N, 4, S, S)."""
        image = batch.image.float()
        hidden = self.hidden(image.shape[-1], draws)
        return torch.where(hidden, 0.0, image), torch.cat([image, hidden.float()], dim=1)

    def hidden(self, side: int, draws: Draws) -> Tensor:
        """(N, 1, S, S) bool: regions with a share of the photo between the two that are set."""
        views = self.config.views
        coarse: int = max(2, round(views.resolution * side))
        noise = draws.uniform("context_encoder regions", 1, coarse, coarse)
        smooth = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)
        share: Tensor = views.least_share + draws.uniform("context_encoder share") * (
            views.largest_share - views.least_share
        )
        return above(smooth, share)

    def forward(self, image: Tensor) -> Tensor:
        """What photos (N, 3, S, S) with hidden regions are taken to be, of the same shape."""
        filled: Tensor = self.decoder(self.backbone(image)[self.backbone.last])
        return F.interpolate(filled, image.shape[2:], mode="bilinear", align_corners=False)

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The squared error of what was hidden."""
        image, hidden = target.split((3, 1), dim=1)
        return {"inpainting": masked_loss(outputs, image, hidden > 0)}


def above(noise: Tensor, share: Tensor) -> Tensor:
    """The highest places of noise (N, 1, H, W), at most a share (N,) of all and short of it by those of one level.

    There are 65,536 levels from an image's lowest place to its highest, so that is a few places; sorting all of them
    takes ten times as long.
    """
    flat = noise.flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    level = ((flat - low) * ((_LEVELS - 1) / (high - low).clamp(min=1e-30))).long()
    counts = torch.zeros(len(flat), _LEVELS, device=flat.device).scatter_add_(1, level, torch.ones_like(flat))
    fits = counts.flip(1).cumsum(dim=1) <= share[:, None] * flat.shape[1]
    return (level >= _LEVELS - fits.sum(dim=1, keepdim=True)).view_as(noise)


class ContextEncoder(Pretext):
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "context_encoder"
    caption: ClassVar[str] = (
        "Photos of a training batch with hidden regions, as the network fills them in, and as they are."
    )
    Config: ClassVar[type[settings.Config]] = ContextEncoderConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "The network learnt to fill in regions of photos that were hidden."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """None that is known: that of the mean colour is the photos' variance."""
        return {}

    @torch.no_grad()
    def picture(self, batches: Mapping[str, Batch]) -> Image.Image:
        """The first photos: as they are seen, with hidden regions filled in (evaluation mode), and as they are.

        Sync: waits for the predictions.
        """
        views, target = self.views(batches["real"])
        views, target = views[:_SHOWN], target[:_SHOWN]
        image, hidden = target.split((3, 1), dim=1)
        self.networks.eval()
        filled = torch.where(hidden > 0, self.networks(views).float(), image)
        self.networks.train()
        columns = {"seen": views, "filled in": filled, "true": image}
        return image_columns({words: column.cpu().numpy() for words, column in columns.items()}, IMAGE_MEAN)
