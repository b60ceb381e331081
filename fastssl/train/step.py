"""One training step, by the algorithm of Ren & Lee, CVPR 2018 (docs/reproduction.md, section 2.2).

    z_x = B(x), z_y = B(y)                       x synthetic, y real; y only as deep as the adapted layer
    D frozen:  update B, H on  L_edge + L_depth + L_normal - log(1 - D(z_x))
    B frozen:  update D    on  - log D(z_x) - log(1 - D(z_y))

D(z) is the probability that z is synthetic. Both updates read the features computed at the top and the parameters as
they stood there, so neither needs anything of the other: on a GPU they run on two streams with the very result of
running them one after the other.

Deviation: the authors' code updates D first and lets B see the new D; the difference is one small SGD step of D
(docs/reproduction.md, sections 5.6 and 6.9).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import SGD, Adam, Optimizer

from fastssl.batch import RealBatch, SyntheticBatch
from fastssl.config import Config
from fastssl.models import Networks
from fastssl.train.losses import adversarial_loss, discriminator_loss, task_losses
from fastssl.train.pool import FeaturePool
from fastssl.train.streams import SideStream


class TrainingStep:
    """Holds what a step changes: networks, optimizers, feature pools and the gradient scaler."""

    def __init__(self, networks: Networks, config: Config, device: torch.device) -> None:
        self.networks = networks
        self.config = config
        self.device = device
        self.layer = config.model.adapted_layer
        self.side = SideStream(device, enabled=config.train.streams)
        optim = config.optim
        # The fused forms skip a step of infinite gradients, with float16, without asking the device for it.
        on_gpu = device.type == "cuda"
        trained = [*networks.backbone.parameters(), *networks.heads.parameters()]
        self.task_optimizer = Adam(trained, lr=optim.lr, betas=optim.betas, fused=on_gpu)
        self.discriminator_optimizer: SGD | None = None
        if networks.discriminator is not None:
            self.discriminator_optimizer = SGD(
                networks.discriminator.parameters(),
                lr=optim.discriminator_lr,
                momentum=optim.discriminator_momentum,
                weight_decay=optim.discriminator_weight_decay,
                fused=on_gpu or None,
            )
            _at_rest(self.discriminator_optimizer)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=config.train.amp and config.train.amp_dtype == "float16"
        )
        self.scaler.scale(torch.zeros((), device=device))  # makes its state on this stream, not on the side's
        seeds = (torch.Generator().manual_seed(config.train.seed + domain) for domain in (0, 1))
        self.synthetic_pool, self.real_pool = (FeaturePool(config.optim.pool_size, seed) for seed in seeds)

    def __call__(self, synthetic: SyntheticBatch, real: RealBatch | None) -> dict[str, Tensor]:
        """Update B, H and D once.

        Args:
            synthetic: images with labels.
            real: photos; None if and only if no layer is adapted.

        Returns:
            The weighted losses (scalars on the device), by name: the tasks, and `adversarial` and `discriminator`.

        Sync: none.
        """
        backbone, heads, discriminator = self.networks.backbone, self.networks.heads, self.networks.discriminator
        weights = self.config.loss
        losses: dict[str, Tensor] = {}

        with self._precision():
            features = backbone(synthetic.image)
        if discriminator is not None and real is not None:
            z_x = features[self.layer]
            with torch.no_grad(), self._precision():
                z_y = backbone(real.image, until=self.layer)[self.layer]
            with self.side.run():  # B frozen: the pools give detached features
                with self._precision():
                    d_x, d_y = discriminator(self.synthetic_pool.mix(z_x)), discriminator(self.real_pool.mix(z_y))
                losses["discriminator"] = weights.discriminator_weight * discriminator_loss(d_x, d_y)
                self.scaler.scale(losses["discriminator"]).backward()

        with self._precision():
            predictions = heads(features["fc7"])
            if discriminator is not None:  # D frozen: its parameters enter as constants
                constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
                adversarial = functional_call(discriminator, constants, z_x)
        objective = task_losses(predictions, synthetic, weights)
        if discriminator is not None:
            objective["adversarial"] = weights.adversarial_weight * adversarial_loss(adversarial)
        self.scaler.scale(torch.stack(list(objective.values())).sum()).backward()

        self._update(self.task_optimizer)
        self.side.join()
        if self.discriminator_optimizer is not None:  # not before the adversarial gradient has passed through D
            self._update(self.discriminator_optimizer)
        self.scaler.update()
        return {name: loss.detach() for name, loss in (objective | losses).items()}

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the configured learning rates by `factor` from now on."""
        optim = self.config.optim
        for group in self.task_optimizer.param_groups:
            group["lr"] = optim.lr * factor
        if self.discriminator_optimizer is not None:
            for group in self.discriminator_optimizer.param_groups:
                group["lr"] = optim.discriminator_lr * factor

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, besides its batches."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; raises what the parts raise where the shapes differ."""
        for name, part in self._parts().items():
            part.load_state_dict(_fused_as(part, state[name]) if isinstance(part, Optimizer) else state[name])
        if self.discriminator_optimizer is not None:
            _at_rest(self.discriminator_optimizer)

    def _parts(self) -> dict[str, Any]:
        parts = {
            **self.networks.parts(),
            "task_optimizer": self.task_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "synthetic_pool": self.synthetic_pool,
            "real_pool": self.real_pool,
            "scaler": self.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _precision(self) -> torch.autocast:
        # One context per use: leaving it drops autocast's cache of cast weights, which must not pass between streams.
        train = self.config.train
        return torch.autocast(self.device.type, dtype=getattr(torch, train.amp_dtype), enabled=train.amp)

    def _update(self, optimizer: Optimizer) -> None:
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)


def _fused_as(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state for this optimizer's form: one that was saved on a CPU would bring the CPU's form to a GPU."""
    fused = optimizer.param_groups[0]["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def _at_rest(optimizer: SGD) -> None:
    """Momenta of zero where a fused optimizer has none yet; its first step begins from them in any case.

    It would make them without a value in its first step, and where that is skipped for infinite gradients, as
    float16's often is, keep what the memory held.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
