"""What loading takes on this machine: its parts one by one, the whole, and the whole with other threads and prefetch.

The figures alone are found out here; `fastssl.bench.verdict` says what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from typing import Literal

import torch

from fastssl import __version__
from fastssl.bench.gpu import GpuUse, gpu_use
from fastssl.bench.parts import PARTS, MeasuredDomain, Part, Work, loader, parts_of
from fastssl.bench.rates import STRETCHES, Rate, measure, num_cores, processor_name
from fastssl.config import Config
from fastssl.errors import UsageError
from fastssl.loader import LoaderOptions, Maker, Mixture
from fastssl.shards import DomainName
from fastssl.telemetry import Advance
from fastssl.train import calibrated_options, run_device

PREFETCH = (1, 2, 4)
HW_DECODER_LOADS = (0.0, 0.12, 0.35, 0.65, 0.9, 1.0)
_SMALLEST_BATCH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """On what the figures were found."""

    processor: str
    cores: int
    """That this process may use."""
    load: float
    """Programs that wanted a core, mean of the minute before."""
    gpu: str | None
    """That the loader works on; None = the CPU."""
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How the loader was set for everything but the sweep."""

    threads: int
    prefetch: int
    load_on: Maker
    """Who makes the batches."""
    hw_decoder_load: float
    size: int
    """Side of the output in pixels."""
    stored: int
    """Shorter side of the packed images; of the first domain."""
    resamples: bool
    """Windows are resampled, because they are not as large as the output."""
    augments: bool
    """Colours are changed, or images blurred."""
    batch: dict[DomainName, int]
    """Images per step."""
    bytes_per_image: dict[DomainName, float]
    """That are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the loading of one domain; for both, their loaders together."""

    domain: Literal["synthetic", "real", "both"]
    part: Part
    rate: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """The loader of one domain with other settings."""

    threads: int
    prefetch: int
    load_on: Maker
    hw_decoder_load: float
    rate: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """All figures; goes through JSON and back unchanged."""

    machine: Machine
    setup: Setup
    stages: tuple[Stage, ...]
    sweep_domain: DomainName
    sweep_batch: int
    """Images per step in the sweep: fewer than in training where those would take too long."""
    sweep: tuple[SweepPoint, ...]
    gpu: GpuUse | None
    """While the loader runs."""


def measure_loading(
    synthetic: Mixture | None,
    real: Mixture | None,
    config: Config,
    *,
    seconds: float = 20.0,
    progress: Advance | None = None,
) -> LoadReport:
    """Measure the loading of a training with these settings, on the GPU where there is one.

    Args:
        synthetic, real: what is loaded; one of them may be missing.
        config: its data, augmentations, threads and precision are used.
        seconds: for all measurements together. A stretch has one batch at least, and a measurement a warm-up of a few,
            so large batches on a slow machine take longer.
        progress: called as `fastssl.telemetry.Advance`.

    Raises:
        UsageError: no dataset is given.
        DataError: the synthetic dataset has no targets, or a dataset is damaged.
        ConfigError: the packed images are smaller than the network's input.
    """
    given: tuple[tuple[DomainName, Mixture | None], ...] = (("synthetic", synthetic), ("real", real))
    domains = [MeasuredDomain(name, samples, config) for name, samples in given if samples is not None]
    if not domains:
        raise UsageError(
            "there is nothing to load",
            hint="give --synthetic FOLDER, --real FOLDER or both: folders that `shard` packed",
        )
    load, _, _ = os.getloadavg()
    options = calibrated_options(domains[0].domain, run_device())
    settings = _sweep_settings(options)
    parts = [(domain, part) for domain in domains for part in parts_of(domain, options)]
    meter = _Meter(options, seconds, len(parts) + (len(domains) == 2) + len(settings), progress)
    stages = [_stage(meter, domain, part) for domain, part in parts]
    if len(domains) == 2:
        stages.append(Stage(domain="both", part="loader", rate=meter.rate("both", _together(domains, options))))
    alone = next(stage.rate for stage in stages if stage.part == "loader")
    batch = _sweep_batch(domains[0].batch_size, alone, meter.seconds)
    sweep = tuple(_point(meter, domains[0], point, batch) for point in settings)
    return LoadReport(
        machine=_machine(options, load),
        setup=_setup(config, options, domains),
        stages=tuple(stages),
        sweep_domain=domains[0].name,
        sweep_batch=batch,
        sweep=sweep,
        gpu=meter.gpu(_together(domains, options)),
    )


class _Meter:
    """Gives every measurement the same time, and tells how far they are."""

    def __init__(self, options: LoaderOptions, seconds: float, total: int, progress: Advance | None) -> None:
        self.options, self.seconds = options, seconds / total
        self._total, self._done, self._progress = total, 0, progress

    def rate(self, words: str, part: AbstractContextManager[Work], prefetch: int | None = None) -> Rate:
        self._tell(words)
        warm_up = 1 + (prefetch or self.options.prefetch)  # what was made ahead comes for nothing
        with part as work:
            rate = measure(work, self.seconds, warm_up=warm_up, wait=self._wait)
        self._done += 1
        self._tell(words)
        return rate

    def gpu(self, part: AbstractContextManager[Work]) -> GpuUse | None:
        device = self.options.device
        if device.type == "cpu":
            return None
        with part as work:
            return gpu_use(work, self.seconds, device.index or 0, wait=self._wait)

    def _tell(self, words: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, words)

    def _wait(self) -> None:
        """For the batches that were taken, and not for those that DALI makes ahead."""
        if self.options.device.type == "cuda":
            torch.cuda.current_stream(self.options.device).synchronize()


def _stage(meter: _Meter, domain: MeasuredDomain, part: Part) -> Stage:
    rate = meter.rate(f"{domain.name}: {part.replace('_', ' ')}", PARTS[part](domain, meter.options))
    return Stage(domain=domain.name, part=part, rate=rate)


@contextmanager
def _together(domains: list[MeasuredDomain], options: LoaderOptions) -> Iterator[Work]:
    """The loaders of all domains, a step of each in turn."""
    with ExitStack() as stack:
        loaders = [stack.enter_context(loader(domain, options)) for domain in domains]
        yield lambda: sum(step() for step in loaders)


def _sweep_settings(options: LoaderOptions) -> list[LoaderOptions]:
    """Threads by prefetch, and where there is a GPU, batches that it makes, by the fraction of its JPEG engine."""
    cores = num_cores()
    threads = [*(2**power for power in range(cores.bit_length()) if 2**power < cores), cores]
    settings = [replace(options, threads=count, prefetch=ahead) for count, ahead in product(threads, PREFETCH)]
    if options.device.type == "cuda":
        settings += [replace(options, load_on="gpu", hw_decoder_load=load) for load in HW_DECODER_LOADS]
    return settings


def _sweep_batch(batch_size: int, loader_alone: Rate, seconds: float) -> int:
    """The batches of training, or such that the warm-up and all stretches fit into this time."""
    calls = STRETCHES + 1 + max(PREFETCH)
    return min(batch_size, max(_SMALLEST_BATCH, int(loader_alone.images_per_s * seconds / calls)))


def _point(meter: _Meter, domain: MeasuredDomain, options: LoaderOptions, batch: int) -> SweepPoint:
    words = f"threads {options.num_threads}, prefetch {options.prefetch}"
    return SweepPoint(
        threads=options.num_threads,
        prefetch=options.prefetch,
        load_on="cpu" if options.maker.type == "cpu" else "gpu",
        hw_decoder_load=options.hw_decoder_load,
        rate=meter.rate(words, loader(domain, options, batch), options.prefetch),
    )


def _machine(options: LoaderOptions, load: float) -> Machine:
    on_gpu = options.device.type == "cuda"
    packages = ("torch", "nvidia-dali-cuda120", "simplejpeg", "lz4", "numpy")
    return Machine(
        processor=processor_name(),
        cores=num_cores(),
        load=load,
        gpu=torch.cuda.get_device_name(options.device) if on_gpu else None,
        versions={"fastssl": __version__, **{name: version(name) for name in packages}},
    )


def _setup(config: Config, options: LoaderOptions, domains: list[MeasuredDomain]) -> Setup:
    augment = config.augment
    return Setup(
        threads=options.num_threads,
        prefetch=options.prefetch,
        load_on="cpu" if options.maker.type == "cpu" else "gpu",
        hw_decoder_load=options.hw_decoder_load,
        size=config.data.size,
        stored=min(domains[0].samples.image_size),
        resamples=not all(domain.domain.plan().cuts for domain in domains),
        augments=any((augment.brightness, augment.contrast, augment.saturation, augment.hue, augment.blur)),
        batch={domain.name: domain.batch_size for domain in domains},
        bytes_per_image={domain.name: domain.bytes_per_image for domain in domains},
    )
