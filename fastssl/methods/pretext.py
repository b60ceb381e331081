"""What methods that learn from photos alone, by one optimizer, have in common.

A method of this kind says what its networks see of a batch of photos, and what they pay for what they give; its class
inherits `Pretext`, and its networks `PretextNetworks`. Neither is needed to write a method: `Method` is all that the
trainer knows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from fastssl import config as settings
from fastssl.backbones import Backbone, build_backbone
from fastssl.batch import Batch, Target
from fastssl.config import BelowOne, Config, NonNegative, Preset
from fastssl.layers import xavier_initialise
from fastssl.loader import DomainRequest
from fastssl.methods.draws import Draws
from fastssl.methods.method import StepContext
from fastssl.optimizers import adam, restore, sgd

LAST_DEVIATION = 0.01
"""Of the weights of a classifier's last layer, as AlexNet's: all answers are about as likely at first."""


class SgdConfig(settings.OptimSettings):
    """SGD with momentum."""

    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 5e-4


class AdamConfig(settings.OptimSettings):
    """Adam, its weight decay part of the gradient."""

    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0


class PretextNetworks(nn.Module):
    """The backbone and what comes after it.

    Args:
        config: the method's own kind of settings.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.backbone: Backbone = build_backbone(config.model)
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the modules beside the backbone."""

    @abstractmethod
    def views(self, batch: Batch, draws: Draws) -> tuple[Any, Tensor]:
        """What the networks see of a batch of photos, and what they are to tell; float32, whatever the photos are."""

    @abstractmethod
    def losses(self, outputs: Any, target: Tensor) -> dict[str, Tensor]:
        """The weighted losses, by name, in float32.

        Args:
            outputs: what the forward pass gave of the views.
            target: what they were to be.
        """

    @property
    def last_channels(self) -> int:
        """Channels of the backbone's last map."""
        return self.backbone.feature_info[self.backbone.last].channels

    def described(self, image: Tensor) -> Tensor:
        """(N, C): the mean of the backbone's last map of images (N, 3, S, S)."""
        described: Tensor = self.backbone(image)[self.backbone.last].mean(dim=(2, 3))
        return described

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from a generator."""
        xavier_initialise(self, self.config.model.init_gain, generator)
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        drawn = set(self.backbone.modules())
        for module in linear:
            if module not in drawn:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)


def nearly_zero(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Draw the weights of a classifier's last layer, so small that it begins at its chance."""
    nn.init.normal_(layer.weight, std=LAST_DEVIATION, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class Pretext:
    """Holds what a step changes: networks and their optimizer."""

    name: ClassVar[str]
    unit: ClassVar[str] = "images"
    caption: ClassVar[str] = ""
    Config: ClassVar[type[Config]]
    Networks: ClassVar[type[PretextNetworks]]
    presets: ClassVar[Mapping[str, Preset]]
    targets: ClassVar[tuple[Target, ...]] = ("position",)

    networks: PretextNetworks

    @classmethod
    def domains(cls, config: Any) -> tuple[DomainRequest, ...]:
        """Photos; their positions decide what is drawn for them."""
        return (DomainRequest(name="real", targets=cls.targets),)

    @classmethod
    def check(cls, config: Any) -> None:
        """Pass photos without content through networks without content: backbone, layers and sizes are checked.

        Raises:
            ConfigError: there is no such backbone, or it has no such layer or cannot take images of this size.
        """
        with torch.device("meta"):
            networks = cls.Networks(config)
            image = torch.empty(2, 3, config.data.size, config.data.size)
            networks.backbone.check_size(*image.shape[2:])
            numbers = torch.empty(2, dtype=torch.int64)
            batch = Batch(keys=("", ""), image=image, targets={"position": numbers, "class_index": numbers})
            views, target = networks.views(batch, Draws(config.train.seed, batch.position))
            networks.losses(networks(views), target)

    @staticmethod
    @abstractmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings."""

    @staticmethod
    @abstractmethod
    def chance(config: Any) -> dict[str, float]:
        """The losses, by name, of a network that knows nothing."""

    def __init__(self, config: Any, context: StepContext) -> None:
        self.config, self.context = config, context
        with torch.random.fork_rng(devices=[]):  # torch's modules draw weights, which are overwritten
            networks = self.Networks(config)
        networks.initialise(torch.Generator().manual_seed(config.train.seed))
        self.networks = context.placed(networks)
        parameters = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        self.optimizer = self.build_optimizer(parameters)
        context.trains(self.optimizer)

    def build_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Adam or SGD, as the settings are of one or the other."""
        optim, device = self.config.optim, self.context.device
        if isinstance(optim, AdamConfig):
            return adam(parameters, optim, device, betas=optim.betas, weight_decay=optim.weight_decay)
        return sgd(parameters, optim, device, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)

    @property
    def backbone(self) -> Backbone:
        """The network whose features are wanted."""
        return self.networks.backbone

    @property
    def compared_layer(self) -> str:
        """The backbone's own choice."""
        return self.backbone.compared

    def views(self, batch: Batch) -> tuple[Any, Tensor]:
        """What the networks see of a batch of photos, and what they are to tell."""
        return self.networks.views(batch, Draws(self.config.train.seed, batch.position))

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Learn from one batch of photos.

        Args:
            batches: `real` photos with their positions.

        Returns:
            The weighted losses (scalars on the device), by name.

        Sync: none.
        """
        views, target = self.views(batches["real"])
        with self.context.precision():
            outputs = self.networks(views)
        losses = self.networks.losses(outputs, target)
        self.context.backward(torch.stack(list(losses.values())).sum())
        self.context.update(self.optimizer)
        self.context.finish()
        self.learnt_from(target)
        return {name: loss.detach() for name, loss in losses.items()}

    def learnt_from(self, target: Tensor) -> None:
        """Keep what later steps need of a batch's targets: nothing, unless the method says so.

        Sync: none.
        """

    def begin_step(self, number: int, lr_factor: float) -> None:
        """Multiply the configured learning rate by `lr_factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optim.lr * lr_factor

    def picture(self, batches: Mapping[str, Batch]) -> Image.Image | None:
        """None, unless the method draws one."""

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
