"""The ladder of the training step, on one resident batch: what each of its parts gains, each rung with those below."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastssl.batch import Batch
from fastssl.bench.authors import AuthorsStep
from fastssl.bench.made_up import made_up_batches
from fastssl.bench.rates import STRETCHES, num_cores, processor_name
from fastssl.config import Config, validated
from fastssl.methods import StepContext, find_method, unit_of
from fastssl.methods.cross_domain import CrossDomain
from fastssl.telemetry import Advance
from fastssl.train import configure_torch, run_device
from fastssl.train.estimate import Live

Step = Callable[[Mapping[str, Batch]], dict[str, Tensor]]

_MATRIX_SIDE = {"cuda": 8192, "cpu": 2048}
_CPU_BATCH = 8
_PLAIN = {"amp": False, "channels_last": False, "compile": False, "streams": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A form of the step."""

    name: str
    words: str
    on_gpu_alone: bool = False
    train: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the section, in which it differs from the rung below; so for `optim`."""
    optim: Mapping[str, Any] = field(default_factory=dict)


RUNGS = (
    Rung(name="authors", words="the authors' order of work", train=_PLAIN, optim={"backend": "foreach"}),
    Rung(name="lean", words="nothing done twice"),
    Rung(name="fused", words="+ fused optimizers", optim={"backend": "fused"}),
    Rung(name="channels_last", words="+ channels-last", train={"channels_last": True}),
    Rung(name="default_layout", words="or the layout that is chosen", train={"channels_last": "auto"}),
    Rung(name="bf16", words="+ bfloat16", train={"amp": True}),
    Rung(name="compile", words="+ torch.compile", train={"compile": True}),
    Rung(name="streams", words="+ D beside B", on_gpu_alone=True, train={"compile": False, "streams": True}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RungReport:
    """Figures of a rung."""

    name: str
    words: str
    per_s: float
    """Pairs, or what the method counts, per second: median of the turns."""
    turns: tuple[float, ...]
    gmac: float
    """Multiply-adds of one pair in billions, forward and backward."""
    matrix_fraction: float
    """Fraction that the step reaches of the rate at which the device multiplies large bfloat16 matrices."""
    memory_mb: float
    """Megabytes of the tensors that a step makes, at their most: activations, gradients, no libraries' workspaces."""
    losses: dict[str, float]
    """After `loss_steps` steps on the one batch; empty where none were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The ladder."""

    device: str
    cores: int
    threads: int
    batch: int
    unit: str
    matrix_tflops: float
    """Measured, of bfloat16 matrices."""
    loss_steps: int
    rungs: tuple[RungReport, ...]


def measure_steps(
    config: Any,
    *,
    names: Collection[str] = (),
    loss_steps: int = 0,
    turns: int = STRETCHES,
    progress: Advance | None = None,
) -> StepReport:
    """Measure the forms of the step that this machine has, in turns, so that what disturbs one disturbs all.

    Args:
        config: a method's; the settings that a rung stands for are replaced.
        names: of the rungs; none = all.
        loss_steps: after the measurement each rung trains so many steps from the start, for the losses.
        turns: of which a rate is the median.
        progress: called as `fastssl.telemetry.Advance`.
    """
    device = run_device()
    configure_torch(config)
    ladder = [(rung, form) for rung, form in forms(config) if _is_there(rung, config, device, names)]
    tell = _Telling(progress, (turns + 1 + (loss_steps > 0)) * len(ladder))
    found: dict[str, tuple[float, float]] = {}
    for rung, form in ladder:
        tell(rung.words)
        found[rung.name] = _work(built(rung, with_train(form, compile=False), device), form, device)
    rates: dict[str, list[float]] = {rung.name: [] for rung, _ in ladder}
    for _, (rung, form) in product(range(turns), ladder):
        tell(rung.words)
        rates[rung.name].append(_rate(built(rung, form, device), form, device))
        gc.collect()  # the networks of the one before
    losses: dict[str, dict[str, float]] = {}
    for rung, form in ladder if loss_steps else ():
        tell(f"losses, {rung.words}")
        losses[rung.name] = _losses(built(rung, form, device), form, device, loss_steps)
    images, matrix = _images(config), matrix_tflops(device)
    return StepReport(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        cores=num_cores(),
        threads=torch.get_num_threads(),
        batch=images,
        unit=unit_of(config),
        matrix_tflops=matrix,
        loss_steps=loss_steps,
        rungs=tuple(
            _report(rung, rates[rung.name], found[rung.name], images, matrix, losses.get(rung.name, {}))
            for rung, _ in ladder
        ),
    )


class _Telling:
    """Tells how far the measurements are."""

    def __init__(self, progress: Advance | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, words: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, words)
        self._done += 1


def _is_there(rung: Rung, config: Config, device: torch.device, names: Collection[str]) -> bool:
    if names and rung.name not in names:
        return False
    # The authors' order of work is that of one method.
    is_of_method = rung.name != "authors" or isinstance(config, CrossDomain.Config)
    return is_of_method and (device.type == "cuda" or not rung.on_gpu_alone)


def with_train(config: Any, **changes: Any) -> Any:
    """The configuration with other values in its section `train`."""
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def sized(config: Any, batch: int | None) -> Any:
    """The settings with batches of this size; None = their own, or such as a CPU does in seconds."""
    values = config.model_dump()
    for name in ("batch_synthetic", "batch_real"):
        own = values["data"][name]
        values["data"][name] = batch or (own if run_device().type == "cuda" else min(own, _CPU_BATCH))
    return validated(type(config), values)


def forms(config: Config) -> Iterator[tuple[Rung, Any]]:
    """The configuration of each rung."""
    values: dict[str, Any] = config.model_dump()
    for rung in RUNGS:
        values["train"] |= rung.train
        values["optim"] |= rung.optim
        yield rung, validated(type(config), values)


def built(rung: Rung, config: Any, device: torch.device) -> Step:
    """The step of a rung, with fresh networks."""
    context = StepContext(config, device)
    return AuthorsStep(config, context) if rung.name == "authors" else find_method(config.method)(config, context)


def _images(config: Config) -> int:
    return config.data.batch_size(find_method(config.method).domains(config)[0].name)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _work(step: Step, config: Any, device: torch.device) -> tuple[float, float]:
    """Multiply-adds of a step, and the bytes of all tensors that it makes at their most."""
    batches = made_up_batches(config, device)
    step(batches)  # optimizers make their states
    with FlopCounterMode(display=False) as counter:
        step(batches)
    with Live(device) as live:
        step(batches)
    return counter.get_total_flops() / 2, float(live.peak)


def _rate(step: Step, config: Any, device: torch.device) -> float:
    """Images of the first domain per second."""
    batches = made_up_batches(config, device)
    num, repeats = len(next(iter(batches.values())).keys), 20 if device.type == "cuda" else 2
    for _ in range(3 if device.type == "cuda" else 1):
        step(batches)
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        step(batches)
    _wait(device)
    return repeats * num / (time.perf_counter() - started)


def _losses(step: Step, config: Any, device: torch.device, steps: int) -> dict[str, float]:
    batches = made_up_batches(config, device)
    for _ in range(steps - 1):
        step(batches)
    return {name: float(loss) for name, loss in step(batches).items()}


def matrix_tflops(device: torch.device) -> float:
    """Rate at which the device multiplies large bfloat16 matrices, in TFLOP/s: the best of five."""
    side = _MATRIX_SIDE[device.type]
    first, second = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    repeats, seconds = 10 if device.type == "cuda" else 1, []
    multiply = partial(torch.matmul, first, second)
    multiply()
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            multiply()
        _wait(device)
        seconds.append((time.perf_counter() - started) / repeats)
    return 2 * side**3 / min(seconds) / 1e12


def _report(
    rung: Rung,
    rates: Sequence[float],
    work: tuple[float, float],
    images: int,
    matrix: float,
    losses: dict[str, float],
) -> RungReport:
    macs, needed = work
    per_s = statistics.median(rates)
    return RungReport(
        name=rung.name,
        words=rung.words,
        per_s=per_s,
        turns=tuple(rates),
        gmac=macs / images / 1e9,
        matrix_fraction=2 * macs / images * per_s / (matrix * 1e12),
        memory_mb=needed / 1e6,
        losses=losses,
    )


def step_table(report: StepReport) -> str:
    """The ladder as lines that fit 100 columns, each ending in a line break."""
    first = report.rungs[0].per_s
    lines = [
        f"{report.device}, {report.threads} threads on {report.cores} cores; {report.batch} {report.unit} a step; "
        f"{report.matrix_tflops:.3g} TFLOP/s in bfloat16 matrices",
        "",
        f"{'':32}{report.unit + '/s':>10}{'':8}{'GMAC':>8}{'of matrices':>13}{'MB':>8}   loss",
    ]
    for rung in report.rungs:
        loss = f"   {sum(rung.losses.values()):.4f}" if rung.losses else ""
        lines.append(
            f"{rung.words:32}{rung.per_s:10.2f}{rung.per_s / first:7.2f}x{rung.gmac:8.1f}{rung.matrix_fraction:13.0%}"
            f"{rung.memory_mb:8.0f}{loss}"
        )
    return "".join(f"{line}\n" for line in lines)
