"""Method `colorization`: R. Zhang, Isola & Efros, *Colorful Image Colorization*, ECCV 2016.

The network sees a photo in black and white and learns its colours, as a distribution over bins of chroma at each
place. Rare colours weigh more, by how often they were so far in the photos at hand. A photo that has no colours itself
teaches nothing.

Numbers of the preset `paper` are those of the authors' release (`train_alexnet`). Deviations: the backbone is this
project's AlexNet with three channels, into which black and white goes as it goes into evaluations, with levels of the
same lightness; conv1 begins alike for all of them, so that it stays so, and reads photos in colour by their mean. 179
pixels instead of 180. The bins are computed (`fastssl.methods.colours`) and 310 of the 313 are the authors'; how often
each is is counted while the run goes on, smoothed as the targets are, where they counted ImageNet beforehand. They
begin from k-means, and we from Xavier's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.batch import IMAGE_MEAN, Batch
from fastssl.config import Fraction, NonNegative, Preset, Section
from fastssl.losses import bins_loss, rebalancing_weights
from fastssl.methods.colours import bins_near, chroma_bins, gray, lab, rgb, soft_bins
from fastssl.methods.draws import Draws
from fastssl.methods.method import StepContext
from fastssl.methods.pretext import AdamConfig, Pretext, PretextNetworks, nearly_zero
from fastssl.pictures import image_columns

BINS = 313
_SHOWN = 6
"""Photos on a picture."""


class ViewsConfig(Section):
    """What is made of a photo."""

    stride: Annotated[int, Field(ge=1, le=64)] = 8
    """Pixels of the photo from one place whose colour is learnt to the next."""
    neighbours: Annotated[int, Field(ge=1, le=BINS)] = 10
    """Bins that a colour is spread over; 5 in the paper, 10 in its release."""
    deviation: Annotated[float, Field(ge=0.1)] = 5.0
    """Standard deviation of the Gaussian that spreads it; bins are 10 apart."""
    least_chroma: Annotated[float, Field(ge=0, le=100)] = 5.0
    """A photo is left out if neither a nor b of any place is farther from 0."""


class LossConfig(Section):
    """What a place weighs."""

    uniform: Fraction = 0.5
    """Share of a uniform distribution in how often a colour is taken to be; 1 = all weigh alike."""


class OptimConfig(AdamConfig):
    """Adam."""

    weight_decay: NonNegative = 1e-3


class ColorizationConfig(settings.Config):
    """Settings of the method."""

    method: Literal["colorization"] = "colorization"
    views: ViewsConfig = ViewsConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    "paper": {
        "data": {"size": 179, "window": (179 / 256, 179 / 256), "batch_real": 80, "gray": "off"},
        "model": {"init_gain": 1.0},
        # Theirs falls to 1/3, 1/10 and 1/30; three falls by one factor end at the same rate.
        "optim": {"lr": 3e-5, "drop_at": (240 / 450, 300 / 450, 400 / 450), "drop_factor": 30 ** (-1 / 3)},
        "train": {"steps": 450_000},
    },
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 131, "window": (0.6, 1.0), "batch_real": 16, "gray": "off"},
        "views": {"stride": 16},
        "model": {"width": 0.25, "fc_channels": 128, "init_gain": 1.0},
        "optim": {"lr": 1e-3},
        "train": {"steps": 300, "log_every": 10, "picture_every": 100, "checkpoint_every": 150},
    },
}


class Networks(PretextNetworks):
    """The backbone, and a classifier of the colour at each place of its last map."""

    bins: Tensor
    near: Tensor
    colours_seen: Tensor

    def build(self) -> None:
        self.classifier = nn.Conv2d(self.last_channels, BINS, 1)
        self.register_buffer("bins", torch.tensor(chroma_bins().tolist()))
        near = torch.tensor(bins_near(self.config.views.neighbours).tolist())
        self.register_buffer("near", near, persistent=False)
        self.register_buffer("colours_seen", torch.zeros(BINS, dtype=torch.float64))

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.classifier, generator)
        first = next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))
        with torch.no_grad():
            first.weight.copy_(self.constrained(first, first.weight))

    def constrained(self, convolution: nn.Conv2d, weight: Tensor) -> Tensor:
        """Weights of conv1 that are the same for all channels of an image; of others as they are."""
        return weight.mean(dim=1, keepdim=True).expand_as(weight) if weight.shape[1] == 3 else weight

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Photos in black and white (N, 3, S, S), and their colours in bins (N, 313, h, w), 0 where they have none."""
        views = self.config.views
        chroma = lab(batch.image[:, :, :: views.stride, :: views.stride])[:, 1:]
        is_coloured = (chroma.abs() > views.least_chroma).flatten(1).any(dim=1)
        target = soft_bins(chroma, self.bins, self.near, views.neighbours, views.deviation)
        return self.seen(batch.image), target * is_coloured[:, None, None, None]

    @staticmethod
    def seen(image: Tensor) -> Tensor:
        """Photos (N, 3, S, S) in black and white, of which each channel lacks the mean of all means.

        So all channels of conv1 learn the same, and what it gives of a photo in colour is what it gives of its mean.
        """
        return (gray(image) - float(IMAGE_MEAN.mean())).expand(-1, 3, -1, -1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the bins, (N, 313, h, w), at the places of the backbone's last map."""
        logits: Tensor = self.classifier(self.backbone(image)[self.backbone.last])
        return logits

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of the colours, in which rare ones count more."""
        logits = F.interpolate(outputs.float(), target.shape[2:], mode="bilinear", align_corners=False)
        return {"colorization": bins_loss(logits, target, rebalancing_weights(self.prior(), self.config.loss.uniform))}

    def prior(self) -> Tensor:
        """How often each colour was so far, (313,) float64; all alike before the first step."""
        total = self.colours_seen.sum()
        return torch.where(total > 0, self.colours_seen / total.clamp(min=1), 1 / BINS)


class Colorization(Pretext):
    """Holds what a step changes: networks, their optimizer, and how often each colour was."""

    name: ClassVar[str] = "colorization"
    caption: ClassVar[str] = (
        "Photos of a training batch in black and white, as the network colours them, and as they are."
    )
    Config: ClassVar[type[settings.Config]] = ColorizationConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "The network learnt the colours of photos that it saw in black and white."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The loss of bins that are equally likely."""
        return {"colorization": math.log(BINS)}

    def __init__(self, config: Any, context: StepContext) -> None:
        super().__init__(config, context)
        self._of_step: Tensor | None = None

    def learnt_from(self, target: Tensor) -> None:
        """Count the colours of all ranks when the step is over; its own loss does not depend on them.

        Sync: none on a GPU.
        """
        seen = target.sum(dim=(0, 2, 3), dtype=torch.float64)
        self._of_step = seen if self._of_step is None else self._of_step + seen
        if self.context.ends_step:
            self.context.ranks.average([self._of_step])
            networks = self.networks
            assert isinstance(networks, Networks)
            networks.colours_seen += self._of_step
            self._of_step = None

    @torch.no_grad()
    def picture(self, batches: Mapping[str, Batch]) -> Image.Image:
        """The first photos without colours, with the mean of the predicted ones (evaluation mode), and with their own.

        Sync: waits for the predictions.
        """
        image, networks = batches["real"].image[:_SHOWN].float(), self.networks
        assert isinstance(networks, Networks)
        networks.eval()
        likely = networks(networks.seen(image)).float().softmax(dim=1)
        networks.train()
        chroma = torch.einsum("nqhw,qc->nchw", likely, networks.bins)
        chroma = F.interpolate(chroma, image.shape[2:], mode="bilinear", align_corners=False)
        coloured = rgb(torch.cat([lab(image)[:, :1], chroma], dim=1))
        mean = torch.tensor(IMAGE_MEAN.tolist(), device=image.device)[:, None, None]
        columns = {"seen": gray(image) - mean, "coloured": coloured, "true": image}
        return image_columns({words: column.cpu().numpy() for words, column in columns.items()}, IMAGE_MEAN)
