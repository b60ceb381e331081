"""Who makes the batches of a GPU: the CPU's threads, or the GPU, and how many of the images its JPEG engine decodes.

Many cores load faster than a GPU decodes, and take nothing from the step; few do not. The engine saves the GPU most of
the decoding, but all of the images may be too many for it. So the best way depends on the machine. It is found by
loading a few batches in each way, as training loads them.

nvJPEG's batched decoding on that engine has been seen to ignore the order of its stream: it wrote into memory that had
been given back, but that earlier kernels were still to read (pytorch/vision #9606, on H100). So before the engine is
used, the same batches are read twice: at leisure, and while the GPU is kept so busy that every kernel, DALI's own
between decoder and batch among them, reads late. Sums of all rows must agree.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor

from fastssl.batch import Target
from fastssl.loader.graph import decoder_kept
from fastssl.loader.iterator import LoaderOptions, Maker, known_damage, load_batches
from fastssl.loader.mixture import Mixture
from fastssl.loader.plan import Plan

log = logging.getLogger(__name__)

LOADS = (0.0, 0.35, 0.65, 0.9, 1.0)
"""Fractions of the images for the engine that are tried."""
_TIE = 1.03
"""A time this much above the least is as good; then the engine is better left to what else may want it."""
_CHECKED = 8
"""Batches of which late and calm readings are compared."""
_UNDERWAY = 6
"""Batches that are being copied, or used, at most; memory for another one takes far longer than its making."""
_STRETCHES, _STRETCH = 3, 4
"""Stretches of which a time is the median, and the batches of each."""

Images = Callable[[], Iterator[Tensor]]
"""A function that begins the same endless batches of images anew, (N, 3, S, S) of any dtype of 2 or 4 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A way to load, and why it was taken."""

    load_on: Maker
    """Who makes the batches (`LoaderOptions.load_on`)."""
    load: float
    """Fraction of the images for the engine (`LoaderOptions.hw_decoder_load`)."""
    is_safe: bool
    """Late reading found the images of the fastest fraction as they were decoded."""
    reason: str
    seconds: Mapping[float, float]
    """Per batch where the GPU makes it, by fraction; empty where that was not tried."""
    cpu_seconds: float | None = None
    """Per batch where the CPU makes it; None where that was not tried."""


def calibrated(
    samples: Mixture,
    plan: Callable[[], Plan],
    options: LoaderOptions,
    targets: Collection[Target] = (),
    *,
    load_on: Maker | Literal["auto"] = "auto",
) -> Calibration:
    """Find the fastest way to load for a GPU; takes some seconds where there is a choice.

    Args:
        samples: whose images are read.
        plan: makes the same endless random plan each time.
        options: of the loader; who makes the batches, and the fraction, are not looked at.
        targets: are made too, as for the training.
        load_on: who makes the batches, where that is settled.

    Raises:
        ShardError: more samples are damaged than the options allow.
    """
    device = options.device
    if device.type == "cpu":
        return _settled("cpu", "there is no GPU")
    if load_on == "cpu":
        return _settled("cpu", "so it is set")
    if not samples.image_codec.in_graph and load_on == "gpu":
        return _settled("gpu", "the images are no JPEGs, which the CPU decodes")

    # Of all pipelines: a damaged sample is told and counted once.
    damage = known_damage(samples, options, targets)

    def images(maker: Maker, load: float = 0.0) -> Iterator[Tensor]:
        tried = replace(options, load_on=maker, hw_decoder_load=load)
        return map(attrgetter("image"), load_batches(samples, plan(), tried, targets, damage))

    def seconds(maker: Maker, load: float = 0.0) -> float:
        # All that is made ahead, and for the CPU's batches until as much pinned memory is there as ever is in use.
        warm_up = 1 + options.prefetch + (_UNDERWAY if maker == "cpu" else 0)
        return seconds_per_batch(images(maker, load), device, warm_up=warm_up)

    log.info("trying who loads faster, the CPU's threads or the GPU")
    cpu_seconds = None if load_on == "gpu" else seconds("cpu")
    loads: Sequence[float] = (0.0,)
    with ExitStack() as stack:
        if samples.image_codec.in_graph:
            loads = LOADS
            stack.enter_context(decoder_kept(device))
        found = chosen(
            changed=lambda load: changed_images(partial(images, "gpu", load), device),
            seconds=partial(seconds, "gpu"),
            cpu_seconds=cpu_seconds,
            loads=loads,
        )
    tell = log.info if found.is_safe else log.warning
    who = (
        "CPU makes the batches" if found.load_on == "cpu" else f"GPU makes the batches, {found.load:.0%} by its engine"
    )
    tell("the %s: %s", who, found.reason)
    return found


def _settled(load_on: Maker, reason: str) -> Calibration:
    return Calibration(load_on=load_on, load=0.0, is_safe=True, reason=reason, seconds={})


def chosen(
    changed: Callable[[float], int],
    seconds: Callable[[float], float],
    cpu_seconds: float | None = None,
    loads: Sequence[float] = LOADS,
) -> Calibration:
    """The CPU where it is as fast as the fastest fraction; else that one, if no image changes under it; else none.

    Args:
        changed: how many images late reading finds changed, by fraction; called only for one that is to be taken.
        seconds: per batch where the GPU makes it, by fraction.
        cpu_seconds: per batch where the CPU makes it; None = it is not to.
        loads: fractions to try.
    """
    times = {load: seconds(load) for load in loads}
    load = fastest(times)
    listed = ", ".join(f"{1000 * took:.1f} with {load:.0%}" for load, took in times.items())
    reason = f"ms per batch: {listed}"
    found = Calibration(load_on="gpu", load=load, is_safe=True, reason=reason, seconds=times, cpu_seconds=cpu_seconds)
    if cpu_seconds is not None:
        found = replace(found, reason=f"{reason}, {1000 * cpu_seconds:.1f} by the CPU")
        if cpu_seconds <= times[load]:
            return replace(found, load_on="cpu", load=0.0)
    if load and (count := changed(load)):
        reason = f"{count} images decoded by the engine were overwritten while kernels were still to read them"
        return replace(found, load=0.0, is_safe=False, reason=reason)
    return found


def fastest(seconds: Mapping[float, float]) -> float:
    """The fraction with the least time, and of those that are as good the smallest."""
    least = min(seconds.values())
    return min(load for load, took in seconds.items() if took <= _TIE * least)


def changed_images(images: Images, device: torch.device) -> int:
    """The number of images that differ between late and calm reading of some batches."""
    calm, late = _calm_sums(images(), device), _late_sums(images(), device)
    return int((calm != late).any(dim=-1).sum())


def _calm_sums(images: Iterator[Tensor], device: torch.device) -> Tensor:
    sums = []
    for image in islice(images, _CHECKED):
        sums.append(_row_sums(image))
        _wait(device)
    return torch.stack(sums)


def _late_sums(images: Iterator[Tensor], device: torch.device) -> Tensor:
    """Every batch is read behind slow kernels, while DALI already decodes the next ones, and then dropped at once."""
    side, repeats = (4096, 64) if device.type == "cuda" else (64, 1)
    factor = torch.zeros(side, side, dtype=torch.float16, device=device)
    product = torch.empty_like(factor)
    sums = []
    for _ in range(_CHECKED):
        image = next(images)
        for _ in range(repeats):
            torch.mm(factor, factor, out=product)
        sums.append(_row_sums(image))
        del image
    return torch.stack(sums)


def _row_sums(image: Tensor) -> Tensor:
    """(N, S) int64: of each image's rows, of the bits of their pixels, so that equal sums do not depend on an order."""
    bits = image.view(torch.int16 if image.element_size() == 2 else torch.int32)
    return bits.sum(dim=(1, 3), dtype=torch.int64)


def seconds_per_batch(
    images: Iterator[Tensor], device: torch.device, *, warm_up: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time of a batch over some stretches.

    Args:
        warm_up: batches that are taken before, at least as many as were made ahead.
        clock: in seconds.
    """
    for _ in islice(images, warm_up):
        pass
    _wait(device)
    times = []
    for _ in range(_STRETCHES):
        started = clock()
        for _ in islice(images, _STRETCH):
            pass
        _wait(device)
        times.append((clock() - started) / _STRETCH)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    """A wait for the batches that were taken, and not for those that DALI makes ahead."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
