"""What the trainer, the evaluations and the report know of a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from fastssl.backbones import Backbone
from fastssl.batch import Batch, Task
from fastssl.config import Config, Preset, TrainConfig
from fastssl.errors import ConfigError
from fastssl.kernels import can_compile
from fastssl.loader import DomainRequest
from fastssl.ranks import GradientMean, Ranks
from fastssl.streams import SideStream

N = TypeVar("N", bound=nn.Module)

_SLOW_CHANNELS_LAST = 16 << 20
"""Numbers in a layer's weights from which on a CPU is slower with channels last (benchmarks/LOG.md)."""


class StepContext:
    """What every step runs in: device, memory layout, precision, gradient scaler, a side stream and the ranks."""

    def __init__(self, config: Config, device: torch.device, ranks: Ranks | None = None) -> None:
        self.device, self._config = device, config.train
        self._clip_norm = config.optim.clip_norm
        self.ranks = ranks or Ranks()
        self._parts, self._is_last = 1, True
        self.channels_last = False
        """The memory layout of what was placed."""
        self._means: dict[Optimizer, GradientMean] = {}
        self.side = SideStream(device, enabled=self._config.streams)
        uses_scaler = self._config.amp and self._config.amp_dtype == "float16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_scaler)
        self.scaler.scale(torch.zeros((), device=device))  # makes its state on this stream, not on the side's

    def placed(self, networks: N) -> N:
        """The networks on the device, in the memory layout that is faster there, unless the settings name one.

        Each of them is compiled, where the settings ask for it and the machine can.

        Raises:
            ConfigError: batch norms are to see all ranks, on a CPU, compiled, or where `join_batch_norms` refuses them.
        """
        chosen = self._config.channels_last
        if chosen == "auto":
            chosen = is_faster_channels_last(networks, self.device.type, self._config)
        self.channels_last = chosen
        if self._config.sync_batch_norm and self.ranks.world_size > 1:
            if self.device.type == "cpu":
                raise ConfigError(
                    "batch norms over all ranks need GPUs", where="train.sync_batch_norm", hint="leave it out on a CPU"
                )
            if self._config.compile:
                raise ConfigError(
                    "batch norms over all ranks cannot be compiled",
                    where="train.sync_batch_norm",
                    hint="leave out train.compile",
                )
            join_batch_norms(networks)
        networks = networks.to(self.device).to(memory_format=torch.channels_last if chosen else torch.contiguous_format)
        if self._config.compile and can_compile(self.device):
            for network in networks.children():
                network.compile()
        return networks

    def precision(self) -> AbstractContextManager[object]:
        """Mixed precision, where the settings ask for it."""
        # One context per use: leaving it drops autocast's cache of cast weights, which must not pass between streams.
        config = self._config
        return torch.autocast(self.device.type, dtype=getattr(torch, config.amp_dtype), enabled=config.amp)

    @contextmanager
    def part(self, number: int, parts: int) -> Iterator[None]:
        """One of the batches, from 0 on, whose gradients a step averages."""
        self._parts, self._is_last = parts, number == parts - 1
        for mean in self._means.values():
            mean.is_last = self._is_last
        yield

    @property
    def ends_step(self) -> bool:
        """The batch is the step's last one."""
        return self._is_last

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, scaled where the precision needs it."""
        self.scaler.scale(loss / self._parts if self._parts > 1 else loss).backward()

    def trains(self, optimizer: Optimizer) -> None:
        """Let the gradients of an optimizer's parameters be means over all ranks; to be called when it is made."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._means[optimizer] = GradientMean((one for one in parameters if one.requires_grad), self.ranks)

    def update(self, optimizer: Optimizer) -> None:
        """Make the optimizer's step by the gradients of all ranks, and forget them; not before the step's last batch.

        Sync: none.
        """
        if not self._is_last:
            return
        self._means[optimizer].finish()
        if self._clip_norm:
            self.scaler.unscale_(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self.scaler.step(optimizer)
        optimizer.zero_grad()  # without words: apex's take none

    def finish(self) -> None:
        """To be called when all optimizers have made their steps."""
        if self._is_last:
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)


def join_batch_norms(networks: nn.Module) -> None:
    """Let the batch norms that are trained see the batches of all ranks; those of frozen layers stay as they are.

    Raises:
        ConfigError: a norm does more than torch's own, as those of some timm models do, or has hooks: what comes in its
            place would not.
    """
    norms = [
        (parent, name, norm)
        for parent in networks.modules()
        for name, norm in parent.named_children()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    ]
    for parent, name, norm in norms:
        is_torchs = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not is_torchs or norm._forward_hooks or norm._forward_pre_hooks:
            raise ConfigError(
                "a batch norm of the networks cannot see all ranks",
                where="train.sync_batch_norm",
                seen=f"{name}, a {type(norm).__name__}",
                expected="torch's own batch norms",
                hint="leave it out, or take another backbone",
            )
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))


def is_faster_channels_last(networks: nn.Module, device_type: str, train: TrainConfig) -> bool:
    """Whether networks compute faster there with channels last (benchmarks/LOG.md).

    On a GPU that is so where its matrix units work: by far not in full float32.
    """
    if device_type != "cpu":
        return train.amp or train.tf32
    return max((weight.numel() for weight in networks.parameters()), default=0) < _SLOW_CHANNELS_LAST


class Method(Protocol):
    """A way to learn features; a run holds one of these.

    It is made from its settings and a context, by ``METHOD(config, context)``, on the context's device and with
    networks that depend on `train.seed` alone.
    """

    name: ClassVar[str]
    """The name on the command line."""
    unit: ClassVar[str]
    """What a step goes through, in the plural: pairs, images. Images too where a single domain is read (`unit_of`)."""
    caption: ClassVar[str]
    """What is seen on its pictures, for the report."""
    Config: ClassVar[type[Config]]
    """Its settings."""
    presets: ClassVar[Mapping[str, Preset]]
    """Settings that belong together, by name; `paper` and `tiny` are among them."""

    @staticmethod
    def domains(config: Any) -> tuple[DomainRequest, ...]:
        """The domains that it reads with these settings; the length of an epoch is that of the first."""

    @staticmethod
    def check(config: Any) -> None:
        """Refuse settings that cannot work together, before anything is opened.

        Raises:
            ConfigError: see above.
        """

    @staticmethod
    def describe(config: Any) -> str:
        """What is learnt with these settings, in a sentence or two for the report."""

    @staticmethod
    def chance(config: Any) -> dict[str, float]:
        """The losses, by name, of a network that knows nothing, where that is known."""

    def __init__(self, config: Any, context: StepContext) -> None: ...

    @property
    def networks(self) -> nn.Module:
        """All networks, side by side, `backbone` among them."""

    @property
    def backbone(self) -> Backbone:
        """The network whose features are wanted."""

    @property
    def compared_layer(self) -> str:
        """The layer of the backbone whose features evaluations look at."""

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Update the networks once.

        Args:
            batches: one of each domain, by its name.

        Returns:
            The weighted losses (scalars on the device), by name.

        Sync: none.
        """

    def begin_step(self, number: int, lr_factor: float) -> None:
        """To be called before a step, of one batch or several; without it, steps are those late in a training.

        Args:
            number: of the step in the whole run, from 1 on; a run that is resumed goes on counting.
            lr_factor: multiplies the configured learning rates.
        """

    def picture(self, batches: Mapping[str, Batch]) -> Image.Image | None:
        """A picture of how far it is; None where there is nothing to see."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on and all ranks have in common, besides its batches and the context."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; raises what its parts raise where the shapes differ."""

    def rank_state_dict(self) -> dict[str, Any]:
        """What else the next step depends on, which each rank has for itself."""

    def load_rank_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from `rank_state_dict` of all ranks, by rank, of which there may have been another number."""


@runtime_checkable
class ManyLosses(Protocol):
    """A method of several losses that pull at the same backbone."""

    def gradient_norms(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Norms of the gradient of each weighted loss on the backbone's parameters, by name: scalars on the device.

        Nothing is changed by it.
        """


@runtime_checkable
class Constrained(Protocol):
    """Networks of a method that hold the backbone's convolutions to a form, such as halves that share nothing."""

    def constrained(self, convolution: nn.Conv2d, weight: Tensor) -> Tensor:
        """The nearest weights of this form to some, (O, I, k, k), for a convolution of the backbone."""


@runtime_checkable
class Dense(Protocol):
    """A method that predicts a batch's planes from its images."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The planes that it predicts."""

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task, in the units and shapes of a batch's targets; contours as probabilities."""
