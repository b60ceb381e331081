"""The fraction of the images that a GPU's JPEG engine decodes: the fastest one, and none where the engine is not safe.

The engine saves the cores most of the decoding, but all of the images are too many for it where many cores help, so the
best fraction depends on the machine. It is found by reading a few batches with each fraction, as training reads.

nvJPEG's batched decoding on that engine has been seen to ignore the order of its stream: it wrote into memory that had
been given back, but that earlier kernels were still to read (pytorch/vision #9606, on H100). So before the engine is
used, the same batches are read twice: at leisure, and while the GPU is kept so busy that every kernel, DALI's own
between decoder and batch among them, reads late. Sums of all rows must agree.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import attrgetter

import torch
from torch import Tensor

from fastssl.loader.iterator import LoaderOptions, known_damage, load_batches
from fastssl.loader.mixture import Mixture
from fastssl.loader.plan import Plan

log = logging.getLogger(__name__)

LOADS = (0.0, 0.35, 0.65, 0.9, 1.0)
"""Fractions that are tried."""
_TIE = 1.03
"""A time this much above the least is as good; then the engine is better left to what else may want it."""
_CHECKED = 8
"""Batches of which late and calm readings are compared."""
_STRETCHES, _STRETCH = 3, 4
"""Stretches of which a time is the median, and the batches of each."""

Images = Callable[[], Iterator[Tensor]]
"""A function that begins the same endless batches of images anew, (N, 3, S, S) of any dtype of 2 or 4 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fraction for `LoaderOptions.hw_decoder_load`, and why it was taken."""

    load: float
    is_safe: bool
    """Late reading found the images of the fastest fraction as they were decoded."""
    reason: str
    seconds: Mapping[float, float]
    """Per batch, by fraction; empty where there is no GPU."""


def calibrated(samples: Mixture, plan: Callable[[], Plan], options: LoaderOptions) -> Calibration:
    """Find the best fraction of the JPEG engine for a loader; takes some seconds where a GPU is to decode JPEGs.

    Args:
        samples: whose images are read, targets aside.
        plan: makes the same endless random plan each time.
        options: of the loader; its fraction is not looked at.

    Raises:
        ShardError: more samples are damaged than the options allow.
    """
    device = options.device
    if device.type == "cpu":
        return Calibration(load=0.0, is_safe=True, reason="there is no GPU", seconds={})
    if not samples.image_codec.in_graph:
        return Calibration(load=0.0, is_safe=True, reason="the images are no JPEGs", seconds={})

    # Of all pipelines: a damaged sample is told and counted once.
    damage = known_damage(samples, options, ())

    def images(load: float) -> Iterator[Tensor]:
        with_load = replace(options, hw_decoder_load=load)
        return map(attrgetter("image"), load_batches(samples, plan(), with_load, (), damage))

    log.info("trying the GPU's JPEG engine")
    found = chosen(
        changed=lambda load: changed_images(partial(images, load), device),
        seconds=lambda load: seconds_per_batch(images(load), device, warm_up=1 + options.prefetch),
    )
    tell = log.info if found.is_safe else log.warning
    tell("the GPU's JPEG engine decodes %.0f %% of the images: %s", 100 * found.load, found.reason)
    return found


def chosen(changed: Callable[[float], int], seconds: Callable[[float], float]) -> Calibration:
    """The fastest fraction, if no image changes under it; else none.

    Args:
        changed: how many images late reading finds changed, by fraction; called only for one that the engine is in.
        seconds: per batch, by fraction.
    """
    times = {load: seconds(load) for load in LOADS}
    load = fastest(times)
    if load and (count := changed(load)):
        reason = f"{count} images decoded by the engine were overwritten while kernels were still to read them"
        return Calibration(load=0.0, is_safe=False, reason=reason, seconds=times)
    listed = ", ".join(f"{1000 * took:.1f} with {load:.0%}" for load, took in times.items())
    return Calibration(load=load, is_safe=True, reason=f"ms per batch: {listed}", seconds=times)


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
