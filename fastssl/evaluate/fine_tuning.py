"""Training of networks by an evaluation, step by step, which a kill does not cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from fastssl.errors import DataError
from fastssl.evaluate.progress import Progress, digest
from fastssl.train import run_device

log = logging.getLogger(__name__)

_KEEP_EVERY_S = 60.0
_TELL_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an evaluation trains networks.

    A step depends on the networks, the optimizer's state and its own number alone: its draws come from `seed` and the
    number, so a training that was killed and goes on ends with the very same weights.
    """

    steps: int
    lr_factor: Callable[[int], float]
    """What the learning rates of the optimizer's groups are multiplied by at a step, from 0 on."""
    seed: int
    clip_norm: float | None = None
    """Norm of all gradients together above which they are shortened to it; None = never."""

    def run(
        self,
        networks: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[int], Tensor],
        progress: Progress,
        name: str,
        key: str,
    ) -> None:
        """Train the networks, which are in the mode that they shall be in.

        Args:
            networks: all that `optimizer` changes.
            optimizer: with the learning rates at a factor of 1.
            loss_of: the loss of a step by its number. Its random numbers are torch's default ones, such as those of
                dropout, or its own from that number.
            progress: where what is learnt is kept once a minute, and looked for before the first step.
            name: of the subject, for progress and log lines.
            key: what else the training depends on, such as data and settings; the weights at its start are added.

        Raises:
            DataError: the loss is not finite.
        """
        key = f"{key} {self.steps} {self.seed} {self.clip_norm} {digest(networks)}"
        rates = [group["lr"] for group in optimizer.param_groups]
        done, state = progress.of(name, key)
        if state:
            networks.load_state_dict(state["networks"])
            if done < self.steps:
                optimizer.load_state_dict(state["optimizer"])
            log.info("%s: %d of %d steps were done before", name, done, self.steps)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept = told = time.monotonic()
        for step in range(done, self.steps):
            self._set_rates(optimizer, rates, step)
            loss = self._step(optimizer, parameters, loss_of, step, name)
            now = time.monotonic()
            if now - told >= _TELL_EVERY_S:
                told = now
                log.info("%s: step %d of %d, loss %.4f", name, step + 1, self.steps, float(loss))
            is_last = step + 1 == self.steps
            if now - kept >= _KEEP_EVERY_S or is_last:
                kept = now
                learnt = {"networks": networks.state_dict()}
                if not is_last:
                    learnt["optimizer"] = optimizer.state_dict()
                progress.keep(name, key, step + 1, learnt)

    def _set_rates(self, optimizer: torch.optim.Optimizer, rates: Sequence[float], step: int) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * self.lr_factor(step)

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        loss_of: Callable[[int], Tensor],
        step: int,
        name: str,
    ) -> Tensor:
        device = run_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Torch's generator of the CPU takes 32 bits of a seed and leaves out the rest.
            torch.manual_seed(int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0]))
            loss = loss_of(step)
            if not loss.isfinite():
                raise DataError(
                    "the loss of fine-tuning is not finite",
                    where=f"{name}, step {step + 1}",
                    seen=float(loss.detach()),
                    hint="lower the learning rate, or measure weights of a scale that layers share",
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        if self.clip_norm is not None:
            clip_grad_norm_(parameters, self.clip_norm)
        optimizer.step()
        return loss.detach()
