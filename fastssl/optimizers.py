"""Optimizers: torch's, fused or not, or NVIDIA apex's."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from fastssl.config import OptimSettings
from fastssl.errors import DeviceError, UsageError

_FORMS: dict[str, dict[str, bool]] = {"fused": {"fused": True}, "foreach": {"foreach": True}}


def adam(
    parameters: Iterable[nn.Parameter],
    settings: OptimSettings,
    device: torch.device,
    *,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam, its weight decay part of the gradient, by the backend that the settings name.

    Raises:
        DeviceError, UsageError: the backend cannot be used here.
    """
    if settings.backend == "apex":
        kind = _apex("FusedAdam", device)
        fused: Optimizer = kind(
            parameters, lr=settings.lr, betas=betas, weight_decay=weight_decay, adam_w_mode=False
        )  # otherwise AdamW
        return fused
    # The fused form reads and writes each number once, and skips a step of infinite gradients, with float16, without
    # asking the device for it.
    return Adam(parameters, lr=settings.lr, betas=betas, weight_decay=weight_decay, **_FORMS[settings.backend])


def sgd(
    parameters: Iterable[nn.Parameter],
    settings: OptimSettings,
    device: torch.device,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> Optimizer:
    """SGD with momentum, by the backend that the settings name.

    Raises:
        DeviceError, UsageError: the backend cannot be used here.
    """
    values: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    if settings.backend == "apex":
        fused: Optimizer = _apex("FusedSGD", device)(parameters, **values)
        return fused
    optimizer = SGD(parameters, **values, **_FORMS[settings.backend])
    _at_rest(optimizer)
    return optimizer


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Continue from the `state_dict` of an optimizer of the same kind, in the form that this one has."""
    first = optimizer.param_groups[0]
    own = {name: first[name] for name in _FORMS if name in first}
    groups, of_parameters = [dict(group) for group in state["param_groups"]], dict(state["state"])
    for group in groups:
        group.update(own)
        # apex's Adam counts the steps of a group, and torch's those of each parameter.
        steps = group.pop("step", None)
        for index in group["params"]:
            known = of_parameters.get(index, {})
            if own and steps is not None and "exp_avg" in known:
                of_parameters[index] = {**known, "step": torch.tensor(float(steps))}
            elif not own and (steps is not None or "step" in known):
                group["step"] = int(known["step"] if steps is None else steps)
    optimizer.load_state_dict({"state": of_parameters, "param_groups": groups})
    if isinstance(optimizer, SGD):
        _at_rest(optimizer)


def _at_rest(optimizer: SGD) -> None:
    """Momenta of zero where the fused form has none yet; its first step begins from them in any case.

    It would make them without a value in its first step, and where that is skipped for infinite gradients, as
    float16's often is, keep what the memory held.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _apex(name: str, device: torch.device) -> Any:
    """A class of `apex.optimizers` (https://github.com/NVIDIA/apex)."""
    if device.type != "cuda":
        raise DeviceError(
            "apex's optimizers need a CUDA GPU",
            where="optim.backend",
            seen=device.type,
            hint="take optim.backend=fused, which a CPU has too",
        )
    try:
        return getattr(import_module("apex.optimizers"), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            "NVIDIA apex is not installed",
            where="optim.backend",
            seen=str(error),
            hint="take optim.backend=fused, or build apex from https://github.com/NVIDIA/apex with its C++ and "
            "CUDA extensions; the package called apex on the Python index is another project, to be removed first",
        ) from error
