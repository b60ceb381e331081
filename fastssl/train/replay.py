"""A step that failed, made again and looked at from inside."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastssl.batch import Batch
from fastssl.errors import CheckpointError, DataError, DeviceError
from fastssl.loader import training_domains
from fastssl.methods import StepContext, find_method, read_config
from fastssl.telemetry import Advance
from fastssl.train.beginning import begun_method
from fastssl.train.checkpoint import check_data, checkpoint_before, read_checkpoint
from fastssl.train.failure import batches_at, read_failure
from fastssl.train.run import configure_torch, loader_options, run_device
from fastssl.train.trainer import lr_factor, restore

log = logging.getLogger(__name__)


def replay(path: Path, advance: Advance) -> dict[str, Any]:
    """Make the step of a `failed_step_XXXXXXXX.json` again, in its run folder, in which nothing is written.

    The steps since the newest sound checkpoint before it are made again first, by the very samples and views. Of a run
    of several ranks the first one's part is made, so that weights differ from the second of these steps on.

    Args:
        path: the file.
        advance: is told how far it is.

    Returns:
        `step`, `losses` by name, `gradient_norms` of each part of the networks, and `first_not_finite`: the first
        tensor, in the order of the computation, that has a value which is not finite; None if there is none. Numbers
        that are not finite are text.

    Raises:
        DataError: the file or the run cannot be used.
        CheckpointError: the datasets are not those of the run.
    """
    failure, run = read_failure(path), path.parent
    config = read_config(run / "config.yaml")
    configure_torch(config)
    device = run_device()
    context = _Watched(config, device)
    domains = training_domains(find_method(config.method).domains(config), config)
    check_data(failure.fingerprints, {name: domain.fingerprint for name, domain in domains.items()}, config)
    if failure.world_size > 1:
        log.warning("the run had %d ranks: the first one's part is made again", failure.world_size)
    if batches_at(domains, failure.positions, failure.world_size) != failure.batches:
        raise CheckpointError(
            "the step's batches are not those of the run", where=path, hint="let config.yaml be as it was"
        )
    content = _before(run, failure.step, config)
    made = 0 if content is None else content["step"]
    options = loader_options(config, device)
    method = begun_method(config, context, domains, options, resumed=content is not None)
    if content is not None:
        restore(method, context, content)
    left = failure.step - 1 - made
    parts = config.train.accumulate
    batch_of = {name: parts * failure.world_size * domain.batch_size for name, domain in domains.items()}
    with ExitStack() as stack:
        batches = {
            name: stack.enter_context(
                domain.training_batches(
                    options,
                    position=failure.positions[name] - left * batch_of[name],
                    world_size=failure.world_size,
                )
            )
            for name, domain in domains.items()
        }
        for number in range(made + 1, failure.step):
            method.begin_step(number, lr_factor(config.optim, number - 1, failure.total_steps))
            for part in range(parts):
                with context.part(part, parts):
                    method({name: next(domain) for name, domain in batches.items()})
            advance(number, failure.step)
        method.begin_step(failure.step, lr_factor(config.optim, failure.step - 1, failure.total_steps))
        losses: dict[str, float] = {}
        for part in range(parts):
            step_batches = {name: next(domain) for name, domain in batches.items()}
            with context.part(part, parts), context.watching(method.networks, step_batches):
                for name, loss in method(step_batches).items():
                    losses[name] = losses.get(name, 0.0) + loss.item() / parts
        advance(failure.step, failure.step)
    return {
        "step": failure.step,
        "from_checkpoint": made,
        "losses": {name: _number(value) for name, value in losses.items()},
        "gradient_norms": {name: _number(value) for name, value in context.norms.items()},
        "first_not_finite": context.first,
        "reproduced": not all(math.isfinite(value) for value in losses.values()),
    }


def check_reproduced(told: Mapping[str, Any], path: Path) -> None:
    """Raise where the replay's losses are finite.

    Raises:
        DeviceError: see above.
    """
    if not told["reproduced"]:
        raise DeviceError(
            "the step's losses are finite this time",
            where=path,
            hint="another device, another number of threads or ranks rounds differently; if it is the same machine, "
            "test its memory and its GPU",
        )


def as_text(told: Mapping[str, Any]) -> str:
    """What `replay` found, for a reader."""
    lines = [f"step {told['step']}, after the steps from {told['from_checkpoint'] + 1} on"]
    lines += [f"loss {name}: {value}" for name, value in told["losses"].items()]
    lines += [f"norm of the gradients of {name}: {value}" for name, value in told["gradient_norms"].items()]
    lines.append(f"first that is not finite: {told['first_not_finite'] or 'nothing'}")
    return "".join(f"{line}\n" for line in lines)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _before(run: Path, step: int, config: Any) -> dict[str, Any] | None:
    """The newest sound checkpoint of fewer steps; None = the run begins from its seed."""
    while (path := checkpoint_before(run, step)) is not None:
        try:
            return read_checkpoint(path, config)
        except DataError as error:
            log.warning("%s is passed over: %s (%s)", path, error.what, error.seen)
            step = int(path.stem.removeprefix("step_"))
    return None


class _Watched(StepContext):
    """A context that sees gradients before they are forgotten, and tensors as they are made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norms: dict[str, float] = {}
        self.first: str | None = None
        self._networks: nn.Module | None = None

    @contextmanager
    def watching(self, networks: nn.Module, batches: Mapping[str, Batch]) -> Iterator[None]:
        """Look at all that the block's one step makes."""
        self._networks = networks
        for name, parameter in networks.named_parameters():
            self._look(f"the weights {name}, before the step", parameter)
        for domain, batch in batches.items():
            for name, tensor in {"image": batch.image, **batch.targets}.items():
                self._look(f"{name} of the {domain} batch", tensor)
        hooks = [
            module.register_forward_hook(self._hook(name))
            for name, module in networks.named_modules()
            if not list(module.children())
        ]
        yield
        for hook in hooks:
            hook.remove()

    def update(self, optimizer: Optimizer) -> None:
        """Note the norms of its gradients, without float16's scale, then make its step."""
        if self._networks is not None:
            own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            for part, network in self._networks.named_children():
                named = [(name, p.grad) for name, p in network.named_parameters() if p in own and p.grad is not None]
                for name, gradient in named:
                    self._look(f"the gradient of {part}.{name}", gradient)
                if named:
                    squares = torch.stack([gradient.double().square().sum() for _, gradient in named])
                    self.norms[part] = squares.sum().sqrt().item() / self.scaler.get_scale()
        super().update(optimizer)

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._look(f"what {name} gives, {tuple(output.shape)}", output)

        return look

    def _look(self, name: str, tensor: Tensor) -> None:
        if self.first is None and tensor.is_floating_point() and not tensor.isfinite().all():
            self.first = name
