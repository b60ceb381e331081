"""Method `split_brain`: R. Zhang, Isola & Efros, *Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel
Prediction*, CVPR 2017.

One half of the network's channels sees the lightness of a photo and learns its colours; the other half sees its
colours and learns its lightness. The halves share nothing, and their features are taken together.

The halves are one backbone: each convolution has weights from a half to itself alone, as one of two groups, and its
first one reads of RGB either luma or differences of the channels, which black and white has none of. So evaluations
read it like any other, photos in colour and all. What projects the weights projects their gradients, which SGD keeps
to.

Sources: the paper; of the authors' code only the network that is used afterwards is public. Deviations: this project's
AlexNet; luma and differences of RGB in the place of L and ab as inputs, since these are no linear map of RGB and
evaluations would need a network of their own. Not known, and so settings of our choice: the bins of lightness, the
optimizer's numbers, and the length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fastssl import config as settings
from fastssl.batch import Batch
from fastssl.config import Preset, Section
from fastssl.errors import ConfigError
from fastssl.losses import bins_loss
from fastssl.methods.colours import bins_near, chroma_bins, lab, soft_bins
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import Pretext, PretextNetworks, SgdConfig, nearly_zero

CHROMA_BINS = 313
_LUMA = (0.299, 0.587, 0.114)


class ViewsConfig(Section):
    """What is made of a photo."""

    stride: Annotated[int, Field(ge=1, le=64)] = 8
    """Pixels of the photo from one place that is learnt to the next."""
    neighbours: Annotated[int, Field(ge=1, le=CHROMA_BINS)] = 10
    """Bins that a colour is spread over, as in `colorization`."""
    deviation: Annotated[float, Field(ge=0.1)] = 5.0
    """Standard deviation of the Gaussian that spreads it; bins are 10 apart."""
    lightness_bins: Annotated[int, Field(ge=2, le=1000)] = 100
    """Bins of lightness; sources disagree between 50 and 100."""


class SplitBrainConfig(settings.Config):
    """Settings of the method."""

    method: Literal["split_brain"] = "split_brain"
    views: ViewsConfig = ViewsConfig()
    optim: SgdConfig = SgdConfig()


PRESETS: dict[str, Preset] = {
    # Size and crop are those of `colorization`, by the same authors; the other numbers are our choice.
    "paper": {
        "data": {"size": 179, "window": (179 / 256, 179 / 256), "batch_real": 128, "gray": "off"},
        "model": {"init_gain": 1.0},
        "optim": {"lr": 0.01},
        "train": {"epochs": 90},
    },
    # Two CPU cores and a few minutes.
    "tiny": {
        "data": {"size": 131, "window": (0.6, 1.0), "batch_real": 16, "gray": "off"},
        "views": {"stride": 16},
        "model": {"width": 0.25, "fc_channels": 128, "init_gain": 1.0},
        "optim": {"lr": 0.02},
        "train": {"steps": 300, "log_every": 10, "checkpoint_every": 150},
    },
}


class Networks(PretextNetworks):
    """The backbone, whose channels are two halves, and a classifier of each."""

    bins: Tensor
    near: Tensor

    def build(self) -> None:
        _check_halves(self.backbone)
        half = self.last_channels // 2
        self.colours = nn.Conv2d(half, CHROMA_BINS, 1)
        self.lightness = nn.Conv2d(half, self.config.views.lightness_bins, 1)
        self.register_buffer("bins", torch.tensor(chroma_bins().tolist()))
        near = torch.tensor(bins_near(self.config.views.neighbours).tolist())
        self.register_buffer("near", near, persistent=False)
        for convolution in _convolutions(self.backbone):
            if convolution.weight.requires_grad:
                convolution.weight.register_hook(halved)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.colours, generator)
        nearly_zero(self.lightness, generator)
        for convolution in _convolutions(self.backbone):
            convolution.weight.data = self.constrained(convolution, convolution.weight.data)

    def constrained(self, convolution: nn.Conv2d, weight: Tensor) -> Tensor:
        """Weights whose halves share nothing."""
        return halved(weight)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The photos as they are, and the bins of their colours and those of their lightness (N, 313 + Q, h, w)."""
        views = self.config.views
        places = lab(batch.image[:, :, :: views.stride, :: views.stride])
        colours = soft_bins(places[:, 1:], self.bins, self.near, views.neighbours, views.deviation)
        number = (places[:, 0] * (views.lightness_bins / 100)).long().clamp(0, views.lightness_bins - 1)
        lightness = F.one_hot(number, views.lightness_bins).permute(0, 3, 1, 2)
        return batch.image.float(), torch.cat([colours, lightness], dim=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the colours' bins (N, 313, h, w) and of lightness's (N, Q, h, w), of photos (N, 3, S, S)."""
        first, second = self.backbone(image)[self.backbone.last].chunk(2, dim=1)
        return self.colours(first), self.lightness(second)

    def losses(self, outputs: tuple[Tensor, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of each half."""
        large = [F.interpolate(x.float(), target.shape[2:], mode="bilinear", align_corners=False) for x in outputs]
        parts = target.split((CHROMA_BINS, self.config.views.lightness_bins), dim=1)
        colours, lightness = (bins_loss(logits, part) for logits, part in zip(large, parts, strict=True))
        return {"colours": colours, "lightness": lightness}


def halved(weight: Tensor) -> Tensor:
    """The nearest weights, or gradients, (O, I, k, k), of a convolution whose halves share nothing.

    Of RGB the first half of the outputs reads luma, and the second half nothing of what the three channels have in
    common.
    """
    first, second = weight.chunk(2)
    if weight.shape[1] == 3:
        luma = torch.tensor(_LUMA, dtype=weight.dtype, device=weight.device)[:, None, None]
        along = (first * luma).sum(dim=1, keepdim=True) / luma.square().sum() * luma
        return torch.cat([along, second - second.mean(dim=1, keepdim=True)])
    own, _ = first.chunk(2, dim=1)
    _, others = second.chunk(2, dim=1)
    return torch.cat(
        [torch.cat([own, torch.zeros_like(own)], dim=1), torch.cat([torch.zeros_like(others), others], dim=1)]
    )


def _convolutions(backbone: nn.Module) -> list[nn.Conv2d]:
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]


def _check_halves(backbone: nn.Module) -> None:
    """Refuse what mixes channels otherwise than by convolutions, or cannot be halved."""
    for name, module in backbone.named_modules():
        if not list(module.parameters(recurse=False)) or isinstance(module, nn.BatchNorm2d):
            continue
        is_halved = isinstance(module, nn.Conv2d) and module.groups == 1 and module.out_channels % 2 == 0
        if not is_halved:
            raise ConfigError(
                "the backbone's channels cannot be two halves that share nothing",
                where="model.backbone",
                seen=f"{name}: {type(module).__name__}",
                expected="convolutions of an even number of channels and batch norms alone",
                hint="take alexnet, vgg16 or resnet50, and an even model.fc_channels",
            )


class SplitBrain(Pretext):
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "split_brain"
    Config: ClassVar[type[settings.Config]] = SplitBrainConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return "Half of the network learnt the colours of photos from their lightness, and half lightness from colours."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The losses of bins that are equally likely."""
        return {"colours": math.log(CHROMA_BINS), "lightness": math.log(config.views.lightness_bins)}
