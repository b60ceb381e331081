"""Method `supervised`: the classes of photos, with which features that were learnt without any are compared.

The row "ImageNet labels" of the paper's tables is the reference CaffeNet of BVLC (Jia et al., *Caffe*, 2014). Numbers
of the preset `paper` are those of its solver. Deviations: this project's AlexNet, with batch norms, without groups,
local response normalisation and dropout; the classifier reads the mean of its last map.
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
from fastssl.batch import Batch, Target
from fastssl.config import Preset
from fastssl.errors import DataError
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import Pretext, PretextNetworks, SgdConfig, nearly_zero


class ModelConfig(settings.BackboneSettings):
    """The backbone and the classifier."""

    classes: Annotated[int, Field(ge=2, le=1 << 20)] = 1000
    """Classes, numbered from 0 on, that the photos may have; those without one teach nothing."""


class SupervisedConfig(settings.Config):
    """Settings of the method."""

    method: Literal["supervised"] = "supervised"
    model: ModelConfig = ModelConfig()
    optim: SgdConfig = SgdConfig()


PRESETS: dict[str, Preset] = {
    "paper": {
        "data": {"batch_real": 256, "gray": "off"},
        "model": {"init_gain": 1.0},
        "optim": {"lr": 0.01, "drop_at": (100 / 450, 200 / 450, 300 / 450, 400 / 450)},
        "train": {"steps": 450_000},
    },
    # Two CPU cores and a few minutes; the crops of one sample photo are a class, from 1 to 74.
    "tiny": {
        "data": {"size": 131, "window": (0.5, 1.0), "batch_real": 32, "gray": "off"},
        "model": {"width": 0.25, "fc_channels": 128, "init_gain": 1.0, "classes": 75},
        "optim": {"lr": 0.02},
        "train": {"steps": 300, "log_every": 10, "checkpoint_every": 150},
    },
}


class Networks(PretextNetworks):
    """The backbone and a linear classifier."""

    def build(self) -> None:
        self.classifier = nn.Linear(self.last_channels, self.config.model.classes)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        nearly_zero(self.classifier, generator)

    def views(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The photos as they are, and their classes.

        Raises:
            DataError: a class is not one of those that the settings count; told on the CPU, as a GPU would have to be
                waited for.
        """
        classes = batch.class_index
        if classes.device.type == "cpu" and int(classes.max()) >= self.config.model.classes:
            raise DataError(
                "a photo's class is not among those that the network tells apart",
                where=batch.keys[int(classes.argmax())],
                seen=int(classes.max()),
                expected=f"0 to {self.config.model.classes - 1}",
                hint=f"set model.classes to {int(classes.max()) + 1} or more",
            )
        return batch.image, classes

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the classes, (N, classes), of photos (N, 3, S, S)."""
        logits: Tensor = self.classifier(self.described(image))
        return logits

    def losses(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of the classes, a mean over the photos that have one; 0 where none has."""
        total = F.cross_entropy(outputs.float(), target, ignore_index=-1, reduction="sum")
        return {"supervised": total / (target >= 0).sum().clamp(min=1)}


class Supervised(Pretext):
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str] = "supervised"
    Config: ClassVar[type[settings.Config]] = SupervisedConfig
    Networks: ClassVar[type[PretextNetworks]] = Networks
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    targets: ClassVar[tuple[Target, ...]] = ("position", "class_index")

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""
        return f"The network learnt which of {config.model.classes} classes a photo has."

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The loss of classes that are equally likely."""
        return {"supervised": math.log(config.model.classes)}
