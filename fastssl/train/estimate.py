"""What a training will take, found out before it begins: parameters, work, memory, data and time."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fastssl import core_yaml
from fastssl.batch import PLANES, Batch
from fastssl.config import Config, plain
from fastssl.errors import ConfigError
from fastssl.loader import Domain, LoaderOptions, load_batches
from fastssl.methods import Method, StepContext, find_method, unit_of

_META = torch.device("meta")
_MEASURED_S = 5.0
"""For measured steps."""
_MOST_STEPS = 10
_FEW, _SOME = 2, 8
"""Images of the steps by which the time of a whole one is foreseen; batch norms need two."""
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a training holds at its peak, by what they are for.

    Counted tensor by tensor, in float32. What is not counted: the interpreter with its libraries (about 0.5 GiB), a
    GPU's context, workspaces of convolutions, and what an allocator keeps for later. Against the growth of the resident
    memory of a process on a CPU, from before the networks were made to the peak of its steps, the sum was 0.74 to 0.94
    times what was seen (`tests/train/test_estimate.py` holds 0.6 to 1.7). With mixed precision activations take up to
    half less.
    """

    parameters: int
    """And buffers, such as running statistics."""
    gradients: int
    optimizer: int
    pools: int
    """What a method keeps of earlier steps, when it is full."""
    activations: int
    """What is kept for the backward pass, and what comes and goes beside it."""
    loader: int
    """Batches that are made, wait, or are in use."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A step, counted."""

    parameters: dict[str, int]
    """Of each part of the method's networks."""
    macs: float
    """Multiply-accumulates of convolutions and matrix products, forward and backward, of a whole step."""
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a step takes on this machine."""

    seconds_per_step: float
    how: str
    """What was measured, in words."""


def count_step(config: Config, domains: Mapping[str, Domain], options: LoaderOptions) -> Work:
    """Count the work and the memory of a step by making it, on tensors without content."""
    with Live(_META) as live:
        method = empty_method(config)
        networks = method.networks
        parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in networks.named_children()}
        _fill_pools(method, domains)
        batches = {name: _empty_batch(domain, domain.batch_size, options.half) for name, domain in domains.items()}
        method(batches)  # an optimizer makes its state in the first
        resident = live.now
        live.peak = live.now
        with FlopCounterMode(display=False) as counter:
            method(batches)
        in_use = sum(_batch_bytes(batch) for batch in batches.values())
    weights, pools = _bytes_of(list(networks.state_dict().values())), _bytes_of(method.rank_state_dict())
    gradients = sum(p.nbytes for p in networks.parameters() if p.requires_grad)
    return Work(
        parameters=parameters,
        macs=counter.get_total_flops() / 2,
        memory=Memory(
            parameters=weights,
            gradients=gradients,
            optimizer=max(resident - weights - pools - in_use, 0),
            pools=pools,
            activations=max(live.peak - resident - gradients, 0),
            loader=loader_bytes(domains, options),
        ),
    )


def loader_bytes(domains: Mapping[str, Domain], options: LoaderOptions) -> int:
    """Bytes of the batches of a step's domains: those made ahead, one that is finished, and one in use."""
    held = options.prefetch + 2
    batches = (_empty_batch(domain, domain.batch_size, options.half) for domain in domains.values())
    return held * sum(_batch_bytes(batch) for batch in batches)


def check_memory(config: Config, domains: Mapping[str, Domain], options: LoaderOptions) -> None:
    """Refuse what cannot fit: weights, their gradients and the loader's batches alone exceed the device's memory.

    Raises:
        ConfigError: see above; names the settings that matter.
    """
    room = memory_of(options.device)
    weights, batches = (
        2 * _bytes_of(list(empty_method(config).networks.state_dict().values())),
        loader_bytes(domains, options),
    )
    if weights + batches <= room:
        return
    parts = {
        f"{weights / _GIB:.1f} GiB of weights and gradients": ("model.width or model.fc_channels", weights),
        f"{batches / _GIB:.1f} GiB of batches": (
            "train.prefetch, data.size or " + " and ".join(f"data.batch_{name}" for name in domains),
            batches,
        ),
    }
    cure, _ = max(parts.values(), key=lambda part: part[1])
    raise ConfigError(
        "the training does not fit into the memory",
        seen=" and ".join(parts),
        expected=f"at most {room / _GIB:.1f} GiB together, which {options.device} has",
        hint=f"lower {cure}",
    )


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has; of the CPU what the machine or this process's control group may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    limit = group.read_text().strip() if group.is_file() else "max"
    return min(machine, int(limit)) if limit.isdecimal() else machine


def time_step(config: Config, domains: Mapping[str, Domain], options: LoaderOptions, work: Work) -> Timing:
    """Measure a few steps on real batches, within some seconds.

    Where a single step would take longer, or does not fit into the memory, steps on few images are measured, and a line
    is drawn through their times.
    """
    method = find_method(config.method)(config, StepContext(config, options.device))
    main = next(iter(domains.values()))
    with _batches(domains, options, {name: min(domain.batch_size, _SOME) for name, domain in domains.items()}) as made:
        some = {name: next(batches) for name, batches in made.items()}
    few = {name: _first(batch, _FEW) for name, batch in some.items()}
    _seconds(method, few, options.device)  # libraries try kernels in the first
    least, more = _seconds(method, few, options.device), _seconds(method, some, options.device)
    num_few, num_some = (len(batches[main.name].keys) for batches in (few, some))
    per_image = max(more - least, 0.0) / max(num_some - num_few, 1)
    whole = more + per_image * (main.batch_size - num_some)
    if 2 * whole > _MEASURED_S or work.memory.total > memory_of(options.device):
        words = f"steps on {num_few} and {num_some} of {main.batch_size} images, drawn out; loading is left out"
        return Timing(seconds_per_step=whole, how=words)
    with _batches(domains, options, {name: domain.batch_size for name, domain in domains.items()}) as batches:
        _seconds(method, {name: next(made) for name, made in batches.items()}, options.device)
        steps, started = 0, time.perf_counter()
        while steps < _MOST_STEPS and (not steps or time.perf_counter() - started < _MEASURED_S):
            _seconds(method, {name: next(made) for name, made in batches.items()}, options.device)
            steps += 1
        seconds = (time.perf_counter() - started) / steps
    return Timing(seconds_per_step=seconds, how=f"{steps} steps with their loading, after one that was not counted")


def estimate(
    config: Config, domains: Mapping[str, Domain], options: LoaderOptions, steps: int, world_size: int
) -> dict[str, Any]:
    """What `fastssl train --dry-run` tells, as plain values for JSON; bytes, seconds and counts.

    Args:
        config: the settings.
        domains: opened, the first of which counts for rates and epochs.
        options: of the loader.
        steps: in all.
        world_size: number of ranks; memory is that of one.
    """
    main, unit = next(iter(domains.values())), unit_of(config)
    work = count_step(config, domains, options)
    timing = time_step(config, domains, options, work)
    per_step = world_size * config.train.accumulate  # batches
    read_per_step = per_step * sum(domain.batch_size * domain.bytes_per_image for domain in domains.values())
    steps_per_epoch = len(main.samples) / (main.batch_size * per_step)
    return {
        "settings": plain(config),
        "ranks": world_size,
        "parameters": {**work.parameters, "total": sum(work.parameters.values())},
        f"gmac_per_{unit.removesuffix('s')}": work.macs / main.batch_size / 1e9,
        "memory_bytes": {**asdict(work.memory), "total": work.memory.total, "there_is": memory_of(options.device)},
        "steps": steps,
        "epochs": steps / steps_per_epoch,
        "read_bytes": {"per_epoch": round(steps_per_epoch * read_per_step), "in_all": round(steps * read_per_step)},
        "time": {
            "seconds_per_step": config.train.accumulate * timing.seconds_per_step,
            f"{unit}_per_s": world_size * main.batch_size / timing.seconds_per_step,
            "seconds_in_all": steps * config.train.accumulate * timing.seconds_per_step,
            "measured": timing.how,
            "device": str(options.device),
        },
    }


def as_text(told: Mapping[str, Any]) -> str:
    """What `estimate` found, and the settings, for a reader."""
    memory, read, timing = told["memory_bytes"], told["read_bytes"], told["time"]
    (work,) = (name for name in told if name.startswith("gmac_per_"))
    (rate,) = (name for name in timing if name.endswith("_per_s"))
    unit = work.removeprefix("gmac_per_")
    millions = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in told["parameters"].items())
    held = ", ".join(f"{name} {memory[name] / _GIB:.2f}" for name in Memory.__dataclass_fields__)
    lines = {
        "parameters": millions,
        "work": f"{told[work]:.3g} GMAC per {unit}, forward and backward",
        "memory": f"{memory['total'] / _GIB:.2f} GiB of {memory['there_is'] / _GIB:.1f}: {held}",
        "steps": f"{told['steps']:,}, {told['epochs']:.1f} epochs, on {told['ranks']} ranks",
        "read": f"{read['per_epoch'] / 1e9:.3g} GB per epoch, {read['in_all'] / 1e9:.3g} GB in all",
        "time": f"{timing['seconds_per_step']:.3g} s per step, {timing[rate]:.3g} {rate.removesuffix('_per_s')}/s, "
        f"{timing['seconds_in_all'] / 3600:.3g} h in all on {timing['device']} (measured: {timing['measured']})",
    }
    return "".join(f"{name:12}{words}\n" for name, words in lines.items()) + core_yaml.written(told["settings"])


def empty_method(config: Config) -> Method:
    """The method with networks on the meta device, which have sizes and no content.

    That device has neither mixed precision nor fused optimizers.
    """
    train = config.train.model_copy(update={"amp": False, "compile": False})
    optim = config.optim.model_copy(update={"backend": "foreach"})
    plainly = config.model_copy(update={"train": train, "optim": optim})
    with _META:
        return find_method(config.method)(plainly, _Counting(plainly, _META))


class _Counting(StepContext):
    """A context without mixed precision."""

    def precision(self) -> AbstractContextManager[object]:
        return nullcontext()


class Live(TorchDispatchMode):
    """Bytes of all tensors on a device that were made since it began: now, and at their most."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._device_type = device.type
        self.now = self.peak = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device_type:
                self._see(leaf.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self._known:
            return
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, number, size).atexit = False

    def _gone(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


def _fill_pools(method: Method, domains: Mapping[str, Domain]) -> None:
    """Make steps until what is kept of earlier ones grows no more; without content large ones cost no more."""
    size, before = 1024, -1
    while (held := _bytes_of(method.rank_state_dict())) > before:
        before = held
        method({name: _empty_batch(domain, size, half=False) for name, domain in domains.items()})
        size *= 16


def _empty_batch(domain: Domain, num: int, half: bool) -> Batch:
    """A batch without content, on the meta device."""
    size, flat = domain.config.data.size, (num, 1, domain.config.data.size, domain.config.data.size)
    with _META:
        image = torch.empty(num, size, size, 3, dtype=torch.float16 if half else torch.float32).permute(0, 3, 1, 2)
        targets: dict[str, Tensor] = {}
        if not domain.targets.isdisjoint(PLANES):
            targets = {"depth": torch.empty(flat), "normal": torch.empty(num, 3, size, size)}
            targets |= {"edge": torch.empty(flat), "valid": torch.empty(flat, dtype=torch.bool)}
            targets["stored_edge_fraction"] = torch.empty(num)
        if "class_index" in domain.targets:
            targets["class_index"] = torch.empty(num, dtype=torch.int64)
        if "position" in domain.targets:
            targets["position"] = torch.empty(num, dtype=torch.int64)
    return Batch(keys=("",) * num, image=image, targets=targets, stored_size=domain.samples.image_size)


def _first(batch: Batch, num: int) -> Batch:
    targets = {name: target[:num] for name, target in batch.targets.items()}
    return replace(batch, keys=batch.keys[:num], image=batch.image[:num], targets=targets)


def _batch_bytes(batch: Batch) -> int:
    return batch.image.nbytes + sum(target.nbytes for target in batch.targets.values())


def _bytes_of(state: Any) -> int:
    """Bytes of the tensors on the meta device in a state."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor) and leaf.is_meta)


@contextmanager
def _batches(
    domains: Mapping[str, Domain], options: LoaderOptions, sizes: Mapping[str, int]
) -> Iterator[dict[str, Iterator[Batch]]]:
    """Endless batches of the domains, so many images in each; a damaged sample is no matter of an estimate."""
    with ExitStack() as stack:
        made: dict[str, Iterator[Batch]] = {}
        for name, domain in domains.items():
            plan = domain.plan(batch_size=sizes[name])
            batches = load_batches(domain.samples, plan, replace(options, max_bad=len(domain.samples)), domain.targets)
            made[name] = iter(stack.enter_context(batches))
        yield made


def _seconds(method: Method, batches: Mapping[str, Batch], device: torch.device) -> float:
    """Make a step and wait for its end."""
    started = time.perf_counter()
    method(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
