"""Loading on one GPU: ours against a plain DALI graph, and against what training takes.

    python benchmarks/loaders_gpu.py [--samples 1000] [--batch 224] [--seconds 2] [--data DIR]
                                     [--only pairs,settings] [--threads 16,8] [--loads 1,0] [--cpu]

The four-plane samples of `loaders.py`, to the same float tensors on the GPU. Measured are

pairs     what a training loads, one rendered image and one photo a pair, float16, with the fraction of the JPEG engine
          that the calibration chose; and what it takes, the AlexNet step in bfloat16 on one resident batch
settings  the synthetic loader of `fastssl` on its packed shards, and a plain DALI graph on the JPEG and PNG files, of
          320 x 240 and resized beforehand, whose `mixed` decoders decode the JPEGs on the GPU and the PNGs in threads:
          each with every fraction of the engine and every number of threads, their tensors compared before with a
          reference by Pillow and NumPy

Every rate is the median of five stretches; the pairs, and the best settings of all, are measured in five turns, with
power and use of the GPU. Results go to `results/loaders_gpu.json` after every setting; with 16 cores all of it takes
some fifteen minutes. Without a GPU, or with --cpu, the same is done small on the CPU, as a rehearsal of which nothing
is kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import write_result
from loader_dali import file_graph
from loader_data import CROP, STRETCHED, Files, View, Views, prepare, reference, resized_files, source_files
from loader_peers import Batch, batch_edge, planes_of_batch
from loaders import allow, compare
from torch.utils.dlpack import from_dlpack

from fastssl.batch import PLANES, Target
from fastssl.batch import Batch as StepBatch
from fastssl.bench.gpu import gpu_use
from fastssl.bench.rates import STRETCHES, num_cores
from fastssl.config import AugmentConfig, Config, DataConfig
from fastssl.loader import (
    Domain,
    LoaderOptions,
    Maker,
    Mixture,
    RankSlice,
    ViewSettings,
    centre_views,
    endless_plan,
    load_batches,
    open_mixture,
)
from fastssl.loader.calibration import LOADS, calibrated
from fastssl.methods import StepContext, find_method, load_config
from fastssl.shards import DomainName
from fastssl.train import run_device

PARTS = ("pairs", "settings")
"""Parts of the measurement, in this order."""
CHECKED = 8
FIXED = ((7, 20, False), (29, 29, True))
"""Windows and flips of the comparison with the reference."""
IMAGE_MEAN = 1.5
"""Levels of 8 bits that a mean may differ: nvJPEG rounds otherwise than libjpeg."""


Keep = Callable[[dict[str, Any]], object]
"""Stores what is known so far."""


@dataclass(frozen=True, slots=True)
class Point:
    """Settings of a loader."""

    threads: int
    hw_decoder_load: float
    load_on: Maker = "gpu"
    """Who makes fastssl's batches; a plain graph is the GPU's work."""


@dataclass(slots=True)
class Contender:
    """A loader, and the rates of its batches per setting."""

    name: str
    open: Callable[[Views, int, Point], Iterator[Sequence[Any]]]
    """Begins endless batches of this many samples."""
    files: Files
    """What its tensors are compared with."""
    rates: dict[Point, list[float]] = field(default_factory=dict)

    @property
    def best(self) -> Point:
        return max(self.rates, key=lambda point: statistics.median(self.rates[point]))


def fastssl_batches(shards: Mixture, device: torch.device, views: Views, batch: int, point: Point) -> Iterator[Batch]:
    """Ours, from packed shards."""
    data = DataConfig(size=CROP, gray="off", window=(CROP / STRETCHED, CROP / STRETCHED))
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=shards.image_size)
    plan = endless_plan(settings, RankSlice(order=shards.order(seed=0, stream=0), batch_size=batch))
    if views.fixed:
        top, left, flip = (np.full(batch, value) for value in views.fixed)
        seen = replace(centre_views(settings, np.arange(batch)), top=top, left=left, flip=flip)
        plan = replace(plan, steps=cycle([(np.arange(batch), seen)]))
    options = LoaderOptions(
        device=device, load_on=point.load_on, threads=point.threads, hw_decoder_load=point.hw_decoder_load
    )
    for made in load_batches(shards, plan, options, PLANES):
        yield made.image, made.depth, made.normal, made.edge, made.valid


def dali_batches(files: Files, device: torch.device, views: Views, batch: int, point: Point) -> Iterator[Batch]:
    """A plain DALI graph: file readers, image decoders, one window for all planes."""
    on_gpu = device.type == "cuda"
    index = (device.index or 0) if on_gpu else None
    pipeline = file_graph(files, views, batch, point.threads, index, point.hw_decoder_load)
    while True:
        outputs = pipeline.run(torch.cuda.current_stream(device)) if on_gpu else pipeline.run()
        image, depth, codes, last, flip = (from_dlpack(output.as_tensor()) for output in outputs)
        edge = last if files.resized else batch_edge(last[..., 0], flip)
        yield [image.permute(0, 3, 1, 2), *planes_of_batch(depth, codes, edge, flip)]


def step_batches(config: Config, shards: Mixture, options: LoaderOptions) -> Iterator[dict[str, StepBatch]]:
    """Both domains, as a training loads them; the photos are the rendered images without their targets."""
    targets: dict[DomainName, tuple[Target, ...]] = {"synthetic": PLANES, "real": ()}
    endless = {
        name: Domain(name=name, samples=shards, targets=frozenset(wanted), config=config).training_batches(options)
        for name, wanted in targets.items()
    }
    while True:
        yield {name: next(batches) for name, batches in endless.items()}


def check(contender: Contender, point: Point) -> dict[str, float]:
    """Compare the tensors of a few samples with the reference.

    Raises:
        ValueError: they are further from it than allowed.
    """
    found = []
    for fixed in FIXED:
        views = Views(contender.files.samples, fixed)
        batch = [part.cpu().numpy() for part in next(contender.open(views, CHECKED, point))]
        expected = [reference(contender.files, View(sample, *fixed)) for sample in range(CHECKED)]
        found.append(compare(batch, [np.stack(parts) for parts in zip(*expected, strict=True)]))
        allow(found[-1], contender.name, image_mean=IMAGE_MEAN)
    return {name: max(one[name] for one in found) for name in found[0]}


class Meter:
    """Measures pieces of work that end on a GPU."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds

    def wait(self) -> None:
        """For the batches that were taken, not for those that are made ahead."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def stretch(self, work: Callable[[], int], warm_up: int = 4) -> float:
        """Samples per second; what was made ahead is taken before."""
        for _ in range(warm_up):
            work()
        self.wait()
        started, done = time.perf_counter(), 0
        while not done or time.perf_counter() - started < self.seconds:
            done += work()
            self.wait()
        return done / (time.perf_counter() - started)

    def gpu(self, work: Callable[[], int]) -> dict[str, float] | None:
        if self.device.type == "cpu":
            return None
        use = gpu_use(work, self.seconds, self.device.index or 0, wait=self.wait)
        return None if use is None else asdict(use)


def counted(batches: Iterator[Sequence[Any]]) -> Callable[[], int]:
    return lambda: len(next(batches)[0])


def turns(works: dict[str, Callable[[], int]], meter: Meter) -> dict[str, Any]:
    """All of them in five turns, so that none has the quieter time; then each with an eye on the GPU."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(STRETCHES):
        say(f"turn {turn + 1} of {STRETCHES}")
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rates[name].append(meter.stretch(works[name]))
    return {name: {**spread(rates[name]), "gpu": meter.gpu(works[name])} for name in names}


def spread(rates: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "all": list(rates)}


def training_config(shards: Path, batch: int, *, on_gpu: bool) -> Config:
    paths = [f"data.synthetic={shards}", f"data.real={shards}"]
    sizes = [f"data.batch_synthetic={batch}", f"data.batch_real={batch}", "train.amp=true"]
    config: Config = load_config("paper" if on_gpu else "tiny", overrides=[*paths, *sizes])
    return config


def step_work(config: Config, resident: dict[str, StepBatch], device: torch.device) -> Callable[[], int]:
    """The training step on the same batches, over and over; tells how many pairs it was."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    step = find_method(config.method)(config, StepContext(config, device))

    def work() -> int:
        step(resident)
        return config.data.batch_synthetic

    return work


def main() -> None:
    arguments = parsed()
    device = torch.device("cpu") if arguments.cpu else run_device()
    if device.type == "cpu":
        say("a rehearsal on the CPU: small, and nothing is kept")
        arguments.samples, arguments.batch, arguments.seconds = min(arguments.samples, 16), 4, 0.02
    keep: Keep = partial(write_result, "loaders_gpu") if device.type == "cuda" else json.dumps
    print_table(measure(arguments, device, keep))


def measure(arguments: argparse.Namespace, device: torch.device, keep: Keep) -> dict[str, Any]:
    """All parts that are asked for; `keep` is given what is known whenever that has become more."""
    batch, meter = arguments.batch, Meter(device, arguments.seconds)
    data = arguments.data / str(arguments.samples)
    prepare(data, arguments.samples, say)
    shards = open_mixture(str(data / "shards"))
    result: dict[str, Any] = {"samples": arguments.samples, "batch": batch, "device": str(device)}
    if "pairs" in arguments.only:
        config = training_config(data / "shards", batch, on_gpu=device.type == "cuda")
        measure_pairs(config, shards, meter, result)
        keep(result)
    if "settings" in arguments.only:
        source, resized = source_files(data, arguments.samples), resized_files(data, arguments.samples)
        everyone = [
            Contender("fastssl", partial(fastssl_batches, shards, device), resized),
            Contender("DALI, source files", partial(dali_batches, source, device), source),
            Contender("DALI, resized files", partial(dali_batches, resized, device), resized),
        ]
        points = [Point(*point) for point in product(arguments.threads, arguments.loads)]
        measure_settings(everyone, points, meter, batch, result, keep)
        measure_best(everyone, meter, batch, result)
        keep(result)
    return result


def measure_pairs(config: Config, shards: Mixture, meter: Meter, result: dict[str, Any]) -> None:
    """The loading of pairs and the step in turns."""
    device = meter.device
    options = LoaderOptions(device=device, half=device.type == "cuda")
    order = RankSlice(order=shards.order(seed=0, stream=0), batch_size=config.data.batch_synthetic)
    settings = ViewSettings(data=config.data, augment=config.augment, stored=shards.image_size)
    found = calibrated(shards, lambda: endless_plan(settings, order), options, PLANES)
    pairs = step_batches(config, shards, replace(options, load_on=found.load_on, hw_decoder_load=found.load))
    step = step_work(config, next(pairs), device)
    rates = turns({"loading": lambda: len(next(pairs)["synthetic"].keys), "step": step}, meter)
    result["calibrated"] = {**asdict(found), "seconds": {f"{load:g}": took for load, took in found.seconds.items()}}
    result["pairs_per_s"] = rates
    result["pairs_over_step"] = rates["loading"]["median"] / rates["step"]["median"]


def measure_settings(
    everyone: Sequence[Contender],
    points: Sequence[Point],
    meter: Meter,
    batch: int,
    result: dict[str, Any],
    keep: Keep,
) -> None:
    """Tensors compared, then all loaders with one setting after the other."""
    result["largest_differences"] = {one.name: check(one, points[0]) for one in everyone}
    rows: dict[str, list[dict[str, Any]]] = {one.name: [] for one in everyone}
    result["settings"] = rows
    for point, contender in product(points, everyone):
        say(f"{contender.name}: {point.threads} threads, {point.hw_decoder_load:.0%} by the engine")
        work = counted(contender.open(Views(contender.files.samples), batch, point))
        contender.rates[point] = [meter.stretch(work) for _ in range(STRETCHES)]
        rows[contender.name].append({**asdict(point), "samples_per_s": spread(contender.rates[point])})
        keep(result)


def measure_best(everyone: Sequence[Contender], meter: Meter, batch: int, result: dict[str, Any]) -> None:
    """The best setting of each loader, in turns, and how they compare."""
    works = {one.name: counted(one.open(Views(one.files.samples), batch, one.best)) for one in everyone}
    rates = turns(works, meter)
    ours, *others = (rates[one.name]["median"] for one in everyone)
    result["best_settings"] = {one.name: asdict(one.best) for one in everyone}
    result["per_s"] = rates
    result["fastssl_over"] = {one.name: ours / rate for one, rate in zip(everyone[1:], others, strict=True)}


def print_table(result: dict[str, Any]) -> None:
    print(f"{'':24}{'per second':>12}  (least to greatest)")
    pairs = {f"{name}, pairs": rate for name, rate in result.get("pairs_per_s", {}).items()}
    for name, rate in {**pairs, **result.get("per_s", {})}.items():
        print(f"{name:24}{rate['median']:12,.0f}  ({rate['min']:,.0f} to {rate['max']:,.0f})")
    for name, ratio in result.get("fastssl_over", {}).items():
        print(f"fastssl is {ratio:.2f} times as fast as {name}")
    if "pairs_over_step" in result:
        print(f"pairs are loaded {result['pairs_over_step']:.2f} times as fast as the step takes them")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of the five stretches")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-loaders")
    parser.add_argument("--threads", type=listed(int), help="separated by commas; of decoding, all cores and fewer")
    parser.add_argument("--loads", type=listed(float), help="separated by commas; fractions of the JPEG engine")
    parser.add_argument("--only", type=listed(str), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    arguments = parser.parse_args(words)
    unknown = set(arguments.only) - set(PARTS)
    if unknown:
        parser.error(f"no part is named {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    on_gpu, cores = not arguments.cpu and run_device().type == "cuda", num_cores()
    arguments.threads = arguments.threads or [cores, *(count for count in (16, 8, 4) if on_gpu and count < cores)]
    arguments.loads = arguments.loads or list(LOADS[::-1] if on_gpu else LOADS[:1])
    return arguments


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A parser of a list of values of this kind."""
    return lambda text: [kind(word) for word in text.split(",")]


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
