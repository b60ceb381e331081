"""What a GPU makes of fastssl: right or not, and how fast; the most valuable facts first.

    python tools/gpu_check.py --out DIR [--budget SECONDS] [--only STAGE,STAGE] [--cpu]

Every stage runs in a process of its own, with a limit of its own: one that crashes or hangs costs itself. It needs no
package index, no git and no installation, only the packages that fastssl imports. It writes below DIR, and the samples
that it makes below --data:

gpu.json     a record per stage with its return code `rc`, seconds and facts, and the conditions; renewed by each
STAGE.json   the facts of a stage, renewed after each finding, so that one that is cut short leaves what it found
STAGE.log    what the stage printed

With --cpu everything is rehearsed small on the CPU. Its rates mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice, product
from operator import attrgetter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "shards" / "sample" / "render_train"
PATHS = (str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks"))
PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "nvidia-dali-cuda120",
    "nvidia-nvimgcodec-cu12",
    "nvidia-ml-py",
    "lz4",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
)
LEAST_S = 8.0
"""A stage is not begun with less time than this."""
BUDGET_S = 1200.0
"""Seconds for all stages, where no other number is given."""
MOST_TESTS = 8
"""Tests that run at the same time, each with a context of the GPU."""
WITHOUT_POOLS: tuple[dict[str, str], ...] = (
    {"DALI_USE_VMM": "0"},
    {"DALI_USE_DEVICE_MEM_POOL": "0", "DALI_USE_PINNED_MEM_POOL": "0"},
)
"""Environments in which DALI's memory may work where it does not by default."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the stages measure, and how much."""

    on_gpu: bool
    out: Path
    data: Path
    """Folder of the samples that are made to be loaded."""

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")

    @property
    def batch(self) -> int:
        return 224 if self.on_gpu else 4

    @property
    def seconds(self) -> float:
        """Length of a measured stretch."""
        return 0.5 if self.on_gpu else 0.01

    def wait(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()


class Facts(dict[str, Any]):
    """Findings by name; all that are known are written whenever one is added."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._begun = path, time.monotonic()
        self.failed = list[str]()

    def find(self, name: str, work: Callable[[], Any]) -> Any:
        """What the work returns, or `error` with what it raised: the next finding does not depend on it."""
        try:
            self[name] = work()
        except Exception as error:  # told in the record, and in the stage's return code
            self[name] = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
            self.failed.append(name)
        print(f"{time.monotonic() - self._begun:6.1f} s  {name}: {json.dumps(self[name])}", flush=True)
        partial_path = self._path.with_suffix(".partial")
        partial_path.write_text(json.dumps(self, indent=1), encoding="utf-8")
        partial_path.replace(self._path)
        return self[name]


def environment(bench: Bench, facts: Facts) -> None:
    """Versions, the device, the rates of its matrix products, TFLOP/s, and of copies to it, GB/s."""
    facts.find("python", lambda: sys.version.split()[0])
    facts.find("packages", lambda: {name: _version(name) for name in PACKAGES})
    facts.find("conditions", lambda: importlib.import_module("conditions").conditions())
    facts.find("device", partial(_device_facts, bench))
    for name in ("bf16", "tf32", "fp32"):
        facts.find(f"matrix {name}", partial(_matrix_rate, bench, name))
    facts.find("upload", partial(_upload_rate, bench))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device_facts(bench: Bench) -> dict[str, Any]:
    import torch

    if not bench.on_gpu:
        return {"cores": len(os.sched_getaffinity(0))}
    seen = torch.cuda.get_device_properties(0)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "name": seen.name,
        "memory_gib": seen.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _matrix_rate(bench: Bench, precision: str) -> float:
    import torch

    side, times = (8192, 20) if bench.on_gpu else (128, 1)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    factor = torch.randn(side, side, device=bench.device, dtype=kind)
    seconds = _median_seconds(bench, lambda: factor @ factor, times)
    return 2 * side**3 / seconds / 1e12


def _upload_rate(bench: Bench) -> float:
    import torch

    source = torch.empty((256 if bench.on_gpu else 1) << 20, dtype=torch.uint8, pin_memory=bench.on_gpu)
    target = torch.empty_like(source, device=bench.device)
    seconds = _median_seconds(bench, lambda: target.copy_(source, non_blocking=True), 4)
    return len(source) / seconds / 1e9


def _median_seconds(bench: Bench, work: Callable[[], Any], times: int) -> float:
    """Of one piece of work: the median of three stretches, after as many to warm up."""
    taken = []
    for _ in range(4):
        bench.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        bench.wait()
        taken.append((time.perf_counter() - started) / times)
    return statistics.median(taken[1:])


FORMS: dict[str, dict[str, Any]] = {
    "resized": {"window": (0.5, 1.0)},
    "cut": {"window": (131 / 148, 131 / 148)},
    "cut, gray": {"window": (131 / 148, 131 / 148), "gray": "per_sample"},
    "resized, nearest, area": {"window": (0.5, 1.0), "edge_filter": "area", "normal_filter": "nearest"},
    "colours and blur": {
        "window": (131 / 148, 131 / 148),
        "augment": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 10, "blur": 0.5},
    },
    "half": {"window": (131 / 148, 131 / 148), "half": True},
}
"""Forms of the loader's graph."""
EXACT = ("depth", "edge", "valid")


def smoke(bench: Bench, facts: Facts) -> None:
    """Batches of every form of the graph beside the CPU's: depth, contours and valid must be equal, images near."""
    import torch

    for load_on, (name, form) in product(("gpu", "cpu"), FORMS.items()):
        name = f"{name}, by the {load_on.upper()}"
        found = facts.find(name, partial(_beside_the_cpu, bench.device, torch.device("cpu"), form, load_on))
        if not found.get("equal", False) and name not in facts.failed:
            facts.failed.append(name)


def _beside_the_cpu(device: Any, cpu: Any, form: Mapping[str, Any], load_on: str) -> dict[str, Any]:
    import torch

    got, expected = _some_batches(device, form, load_on), _some_batches(cpu, {**form, "half": False})
    found: dict[str, Any] = {
        name: [_largest(got, expected, name), _mean(got, expected, name)]
        for name in ("image", "normal", "stored_edge_fraction")
    }
    pairs = list(zip(got, expected, strict=True))
    found["differing"] = [
        name for name in EXACT if not all(torch.equal(getattr(a, name).cpu(), getattr(b, name)) for a, b in pairs)
    ]
    found["equal"] = not found["differing"] and all(a.keys == b.keys for a, b in pairs)
    return found


def _off(got: Sequence[Any], expected: Sequence[Any], name: str) -> Iterator[Any]:
    """Differences, those of images in levels of 8 bits."""
    scale = 255 if name == "image" else 1
    for a, b in zip(got, expected, strict=True):
        yield scale * (getattr(a, name).float().cpu() - getattr(b, name).float()).abs()


def _largest(got: Sequence[Any], expected: Sequence[Any], name: str) -> float:
    return max(float(off.max()) for off in _off(got, expected, name))


def _mean(got: Sequence[Any], expected: Sequence[Any], name: str) -> float:
    return statistics.mean(float(off.mean()) for off in _off(got, expected, name))


def _some_batches(device: Any, form: Mapping[str, Any], load_on: Any = "cpu") -> list[Any]:
    from fastssl.config import AugmentConfig, DataConfig
    from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, endless_plan, load_batches, open_mixture

    samples = open_mixture(str(SAMPLE))
    given = {name: value for name, value in form.items() if name not in ("augment", "half")}
    data = DataConfig.model_validate({"size": 131, "gray": "off", **given})
    settings = ViewSettings(data=data, augment=AugmentConfig(**form.get("augment", {})), stored=samples.image_size)
    plan = endless_plan(settings, RankSlice(order=samples.order(seed=5, stream=0), batch_size=16))
    half = form.get("half", False) and device.type == "cuda"
    options = LoaderOptions(device=device, load_on=load_on, threads=4, half=half)
    return list(islice(load_batches(samples, plan, options), 3))


def engine(bench: Bench, facts: Facts) -> None:
    """The JPEG engine's pixels beside libjpeg's, images that late reading finds changed, and times, by its fraction."""
    from fastssl.loader.calibration import changed_images

    for fraction in (0.0, 0.65, 1.0) if bench.on_gpu else (0.0,):
        facts.find(f"pixels, fraction {fraction:g}", partial(_pixels_beside_libjpeg, bench, fraction))
        images = partial(_photos, bench, fraction)
        facts.find(f"changed, fraction {fraction:g}", partial(changed_images, images, bench.device))
        facts.find(f"seconds, fraction {fraction:g}", partial(_seconds_per_batch, images, bench.device))


def _seconds_per_batch(images: Callable[[], Iterator[Any]], device: Any) -> float:
    from fastssl.loader.calibration import seconds_per_batch

    return seconds_per_batch(images(), device, warm_up=3)


def _pixels_beside_libjpeg(bench: Bench, fraction: float) -> dict[str, float]:
    import numpy as np
    import simplejpeg

    from fastssl.loader import open_mixture
    from fastssl.loader.graph import build_decoder, built
    from fastssl.shards import JPEG

    dataset = open_mixture(str(SAMPLE)).datasets[0]
    streams = [dataset.member(index, JPEG).copy() for index in range(16)]
    expected = np.stack([simplejpeg.decode_jpeg(stream, "RGB") for stream in streams]).astype(np.int16)
    pipeline = build_decoder(
        lambda: streams,
        batch_size=len(streams),
        threads=4,
        device_id=0 if bench.on_gpu else None,
        hw_decoder_load=fraction,
    )
    (images,) = built(pipeline).run()
    off = np.abs((images.as_cpu() if bench.on_gpu else images).as_array().astype(np.int16) - expected)
    return {"mean": float(off.mean()), "largest": float(off.max()), "p99_9": float(np.percentile(off, 99.9))}


def _photos(bench: Bench, fraction: float) -> Iterator[Any]:
    from fastssl.config import AugmentConfig, DataConfig
    from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, endless_plan, load_batches, open_mixture

    samples = open_mixture(str(SAMPLE))
    data = DataConfig(size=131, window=(131 / 148, 131 / 148), gray="off")
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=samples.image_size)
    plan = endless_plan(
        settings, RankSlice(order=samples.order(seed=1, stream=0), batch_size=64 if bench.on_gpu else 4)
    )
    options = LoaderOptions(device=bench.device, load_on="gpu", half=bench.on_gpu, hw_decoder_load=fraction)
    return map(attrgetter("image"), load_batches(samples, plan, options, ()))


@dataclass(frozen=True, slots=True)
class StepForm:
    """A form of the step of the `paper` preset."""

    overrides: tuple[str, ...] = ()
    batches: int = 1
    """How many times the paper's batch size."""
    steps: int = 8
    """In a measured stretch."""
    authors: bool = False
    """In the authors' order of work."""


AUTHORS = ("train.tf32=false", "train.channels_last=false", "optim.backend=foreach")
BF16 = StepForm(("train.amp=true",))
TWO_STREAMS = StepForm(("train.amp=true", "train.streams=true"))
WAYS: dict[str, tuple[str, ...]] = {
    "by the CPU": ("train.load_on=cpu",),
    "by six threads of the CPU": ("train.load_on=cpu", "train.threads=6"),
    "by the GPU's engine": ("train.load_on=gpu", "train.hw_decoder_load=1"),
    "by the GPU without its engine": ("train.load_on=gpu", "train.hw_decoder_load=0"),
    "as found": (),
}
"""Ways to load for a training."""
STEP_FORMS: dict[str, StepForm] = {
    "bf16": BF16,
    "fp32": StepForm(("train.tf32=false",), steps=2),
    "fp32, the authors' order": StepForm(AUTHORS, steps=2, authors=True),
    "tf32": StepForm(steps=4),
    "bf16, not channels-last": StepForm(("train.amp=true", "train.channels_last=false")),
    "fp16": StepForm(("train.amp=true", "train.amp_dtype=float16")),
}
LARGER_FORMS: dict[str, StepForm] = {
    "compiled": StepForm(("train.amp=true", "train.compile=true")),
    "two batches": StepForm(("train.amp=true",), batches=2),
}
"""Forms of the bf16 step that take a minute or more to begin."""


def step(bench: Bench, facts: Facts) -> None:
    """The step of the `paper` preset on one resident batch: pairs/s, memory, and whether the host waits in it.

    cuDNN does not try its kernels here, which takes long for so many forms; `train` has the step with what it chose.
    """
    for name, form in STEP_FORMS.items():
        facts.find(name, partial(_step_facts, bench, form))
        if form is BF16:
            facts.find("gflop_per_pair", partial(_gflop_per_pair, bench))


def _config(bench: Bench, *overrides: str, batches: int = 1) -> Any:
    from fastssl.methods import load_config

    small = ("model.width=0.1", "model.fc_channels=16", "model.head_channels=4", "data.size=67")
    size = batches * bench.batch
    sizes = (f"data.batch_synthetic={size}", f"data.batch_real={size}")
    return load_config("paper", overrides=[*sizes, *(() if bench.on_gpu else small), *overrides])


def _step_work(bench: Bench, form: StepForm, *, autotunes: bool = False) -> Callable[[], Any]:
    """One step on one resident pair of batches, whose values are made up."""
    import torch

    from fastssl.bench.authors import AuthorsStep
    from fastssl.bench.made_up import made_up_batches
    from fastssl.methods import StepContext, find_method
    from fastssl.train import configure_torch

    config = _config(bench, *form.overrides, batches=form.batches)
    configure_torch(config)
    torch.backends.cudnn.benchmark = autotunes
    kind: Any = AuthorsStep if form.authors else find_method(config.method)
    work = kind(config, StepContext(config, bench.device))
    batches = made_up_batches(config, bench.device)
    return lambda: work(batches)


def _gflop_per_pair(bench: Bench) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    work = _step_work(bench, BF16)
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops() / bench.batch / 1e9)


def _step_facts(bench: Bench, form: StepForm, *, autotunes: bool = False) -> dict[str, Any]:
    import torch

    work = _step_work(bench, form, autotunes=autotunes)
    started = time.perf_counter()
    work()
    bench.wait()
    found: dict[str, Any] = {"first_step_s": time.perf_counter() - started}
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = _median_seconds(bench, work, form.steps if bench.on_gpu else 1)
    found |= {"ms": 1000 * seconds, "pairs_per_s": form.batches * bench.batch / seconds}
    if bench.on_gpu:
        started = time.perf_counter()
        work()
        found["host_ms"] = 1000 * (time.perf_counter() - started)
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["host_waits"] = _waits(work)
    return found


def _kernels(bench: Bench) -> dict[str, list[tuple[Any, ...]]]:
    """What takes longest in a step: kernels and operators by the shapes of their inputs; microseconds, and calls."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    work = _step_work(bench, BF16, autotunes=True)
    for _ in range(3):
        work()
    bench.wait()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], record_shapes=True) as seen:
        work()
        bench.wait()
    kernels = [row for row in seen.key_averages() if row.device_type == DeviceType.CUDA]
    operators = [row for row in seen.key_averages(group_by_input_shape=True) if row.device_type == DeviceType.CPU]
    return {
        "kernels": _longest((row.self_device_time_total, row.count, row.key[:140]) for row in kernels),
        "operators": _longest(
            (row.self_device_time_total, row.count, row.key, str(row.input_shapes)[:140]) for row in operators
        ),
    }


def _longest(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=lambda row: -row[0])[:40]


def _waits(work: Callable[[], Any]) -> str | None:
    """What made the host wait for the GPU; None where nothing did."""
    import torch

    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:  # which is how this mode tells
        return str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _data(bench: Bench) -> tuple[Path, int]:
    """Folder and number of the samples in all forms that are compared; made once."""
    loader_data = importlib.import_module("loader_data")
    count = 512 if bench.on_gpu else 8
    folder = bench.data / str(count)
    loader_data.prepare(folder, count, partial(print, flush=True))
    return folder, count


def train(bench: Bench, facts: Facts) -> None:
    """The training from shards to the summary, beside its step on a resident batch."""
    folder, count = _data(bench)
    paths = (
        f"data.synthetic={folder / 'shards'}",
        f"data.real={_photo_shards(folder, count)}",
        "train.amp=true",
        "train.log_every=50",
    )
    steps = f"train.steps={150 if bench.on_gpu else 2}"
    alone: dict[str, Any] = {}
    for name, loading in WAYS.items():
        whole = facts.find(f"end to end, {name}", partial(_trained, _config(bench, *paths, steps, *loading)))
        # Not before the first training: there cuDNN tries its kernels, which it does once in a process.
        alone = alone or facts.find("step alone", partial(_step_facts, bench, StepForm(paths), autotunes=True))
        facts.find(f"fraction of the step alone, {name}", partial(_fraction, whole, alone))
    facts.find("power of the step", partial(_power, bench))
    facts.find("step alone, two streams", partial(_step_facts, bench, TWO_STREAMS, autotunes=True))
    if bench.on_gpu:
        facts.find("longest", partial(_kernels, bench))


def larger(bench: Bench, facts: Facts) -> None:
    """The bf16 step on one resident batch as `torch.compile` makes it, if it does here, and with two batches in one."""
    from fastssl.kernels import can_compile

    facts.find("can_compile", partial(can_compile, bench.device))
    for name, form in LARGER_FORMS.items():
        facts.find(f"step alone, {name}", partial(_step_facts, bench, form, autotunes=True))


def _fraction(whole: Mapping[str, Any], alone: Mapping[str, Any]) -> float:
    """Of the last steps: the first also wait for memory that is then used again."""
    fraction: float = whole["last"]["throughput/pairs_per_s"] / alone["pairs_per_s"]
    return fraction


def _power(bench: Bench) -> dict[str, Any] | None:
    """Power, use and images per joule of the step, by NVML."""
    from fastssl.bench.gpu import gpu_use

    work = _step_work(bench, BF16, autotunes=True)

    def images() -> int:
        work()
        return 2 * bench.batch

    found = gpu_use(images, 5.0 if bench.on_gpu else 0.01, 0, wait=bench.wait)
    return None if found is None else asdict(found)


def _photo_shards(folder: Path, count: int) -> Path:
    """The images of the samples, packed as photos."""
    from fastssl.shards import pack
    from fastssl.sources import FolderSource

    photos, shards = folder / "photos", folder / "photo_shards"
    if not shards.exists():
        photos.mkdir(exist_ok=True)
        for file in importlib.import_module("loader_data").resized_files(folder, count).folder.glob("*_rgb.jpg"):
            shutil.copy(file, photos)
        partial_path = folder / "photo_shards.partial"
        shutil.rmtree(partial_path, ignore_errors=True)
        pack(FolderSource(photos), partial_path, size=256)
        partial_path.rename(shards)
    return shards


def _trained(config: Any) -> dict[str, Any]:
    from fastssl.train import start_run

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start_run(config, run, lambda done, total=None, words="": None)
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return summary | {"last": {name: value for name, value in last.items() if name.startswith(("throughput", "time"))}}


def loading(bench: Bench, facts: Facts) -> None:
    """Pairs as a training loads them, then images per second by threads and fraction of the engine, beside a plain DALI
    graph with targets in PNG."""
    folder, count = _data(bench)
    loaders_gpu, loader_data = (importlib.import_module(name) for name in ("loaders_gpu", "loader_data"))
    from fastssl.loader import open_mixture

    cores = len(os.sched_getaffinity(0))
    fractions = (0.0, 1.0, 0.35) if bench.on_gpu else (0.0,)
    threads = [cores, *(fewer for fewer in (8, 4) if bench.on_gpu and fewer < cores)]
    shards = open_mixture(str(folder / "shards"))
    by_cpu = [loaders_gpu.Point(count, 0.0, "cpu") for count in threads]
    by_gpu = [loaders_gpu.Point(cores, fraction, "gpu") for fraction in fractions]
    for point in (*by_cpu, *by_gpu):
        facts.find(f"pairs, {_words(point)}", partial(_loading_rate, bench, partial(_pairs, bench, shards, point)))
    views = loader_data.Views(count)
    ours = partial(loaders_gpu.fastssl_batches, shards, bench.device)
    plain = partial(loaders_gpu.dali_batches, loader_data.resized_files(folder, count), bench.device)
    for name, begin, point in [
        *(("fastssl", ours, point) for point in (*by_cpu[:1], *by_gpu)),
        *(("plain DALI", plain, point) for point in by_gpu),
    ]:
        work = partial(begin, views, bench.batch, point)
        facts.find(f"{name}, {_words(point)}", partial(_loading_rate, bench, work))


def _words(point: Any) -> str:
    who = "by the CPU" if point.load_on == "cpu" else f"by the GPU, engine {point.hw_decoder_load:g}"
    return f"{who}, {point.threads} threads"


def _pairs(bench: Bench, shards: Any, point: Any) -> Iterator[Sequence[Any]]:
    """What a training of the `paper` preset loads, as tuples that begin with one per pair."""
    from fastssl.loader import LoaderOptions

    options = LoaderOptions(
        device=bench.device,
        load_on=point.load_on,
        threads=point.threads,
        half=bench.on_gpu,
        hw_decoder_load=point.hw_decoder_load,
    )
    batches = importlib.import_module("loaders_gpu").step_batches(_config(bench, "train.amp=true"), shards, options)
    return ((both["synthetic"].keys, both) for both in batches)


def _loading_rate(bench: Bench, begin: Callable[[], Iterator[Sequence[Any]]]) -> dict[str, Any]:
    loaders_gpu = importlib.import_module("loaders_gpu")
    meter, work = loaders_gpu.Meter(bench.device, bench.seconds), loaders_gpu.counted(begin())
    rates = [meter.stretch(work) for _ in range(3 if bench.on_gpu else 1)]
    return {"images_per_s": statistics.median(rates), "least": min(rates), "greatest": max(rates)}


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs in a process of its own: a probe of this file, or the tests."""

    limit_s: float
    probe: Callable[[Bench, Facts], None] | None
    tests: str = ""
    """Marks of the tests that run where there is no probe, as pytest takes them."""


STAGES: dict[str, Stage] = {
    "env": Stage(40, environment),
    "smoke": Stage(80, smoke),
    "engine": Stage(40, engine),
    "tests": Stage(180, None, "not soak and not alone"),
    "train": Stage(250, train),
    "loading": Stage(120, loading),
    "tests_alone": Stage(130, None, "alone"),
    "step": Stage(110, step),
    "larger": Stage(180, larger),
}
"""In the order in which they run."""


def run_probe(name: str, bench: Bench) -> int:
    """Run a probe in this process; 1 where a finding failed, else 0."""
    probe = STAGES[name].probe
    assert probe is not None
    facts = Facts(bench.out / f"{name}.json")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    probe(bench, facts)
    print(f"failed: {', '.join(facts.failed) or 'nothing'}", flush=True)
    return int(bool(facts.failed))


def run_stage(name: str, bench: Bench, limit_s: float, environ: Mapping[str, str]) -> dict[str, Any]:
    """Run a stage in a process of its own, and end all that it began; its record."""
    found, printed = bench.out / f"{name}.json", bench.out / f"{name}.log"
    found.unlink(missing_ok=True)
    started = time.monotonic()
    with printed.open("wb") as log:
        process = subprocess.Popen(
            _command(name, bench), cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        rc: int | str
        try:
            rc = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            rc = "timeout"
        finally:
            _end_group(process)
    record: dict[str, Any] = {"rc": rc, "seconds": round(time.monotonic() - started, 1)}
    if found.exists():
        record["facts"] = json.loads(found.read_text(encoding="utf-8"))
    lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()
    record["end"] = lines[-1:] if rc == 0 else lines[-40:]
    if STAGES[name].probe is None:
        record["failed"] = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return record


def _command(name: str, bench: Bench) -> list[str]:
    if STAGES[name].probe is None:
        # Warnings of this machine's packages are no errors here, and neither is a plugin that it lacks. Each test has a
        # line, so that the log of a stage that is cut short names the last one.
        words = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "told_at_once", "-W", "default", "-v", "--durations=8"]
        many = ["-n", str(MOST_TESTS)] if name == "tests" and find_spec("xdist") is not None else []
        marked = ["-m", STAGES[name].tests, f"--junitxml={bench.out / name}.xml"]
        return [sys.executable, *words, *many, *marked, "tests/gpu"]
    flags = [] if bench.on_gpu else ["--cpu"]
    return [
        sys.executable,
        str(Path(__file__).resolve()),
        "--stage",
        name,
        "--out",
        str(bench.out),
        "--data",
        str(bench.data),
        *flags,
    ]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all of it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(bench: Bench, budget_s: float, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run the stages within the budget, and renew `gpu.json` after each; their records."""
    ends = time.monotonic() + budget_s
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environ["PYTHONPATH"] = os.pathsep.join([*PATHS, *filter(None, [environ.get("PYTHONPATH")])])
    if not bench.on_gpu:
        environ["CUDA_VISIBLE_DEVICES"] = ""
    records: dict[str, dict[str, Any]] = {}
    for name in only or STAGES:
        records[name] = _within(ends, name, bench, environ)
        if name == "smoke" and records[name]["rc"] not in (0, "timeout") and bench.on_gpu:
            # All that follows rests on it. What was only slow the first time is not measured without the pools.
            for extra in WITHOUT_POOLS:
                again = _within(ends, name, bench, environ | extra)
                records[f"smoke, {' '.join(extra)}"] = again
                if again["rc"] == 0:
                    environ |= extra
                    break
        _write(bench.out / "gpu.json", records, environ)
        print(f"{name:8} rc {records[name]['rc']} after {records[name]['seconds']} s", flush=True)
    return records


def _within(ends: float, name: str, bench: Bench, environ: Mapping[str, str]) -> dict[str, Any]:
    left = ends - time.monotonic()
    if left < LEAST_S:
        return {"rc": None, "seconds": 0.0, "end": ["no time was left"]}
    return run_stage(name, bench, min(STAGES[name].limit_s, left), environ)


def _write(path: Path, records: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    settings = {name: value for name, value in environ.items() if name.startswith(("DALI_", "CUDA_", "FASTSSL_"))}
    partial_path = path.with_suffix(".partial")
    conditions = records.get("env", {}).get("facts", {}).get("conditions")
    content = {"conditions": conditions, "settings": settings, "stages": records}
    partial_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial_path.replace(path)


def main() -> int:
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(on_gpu=not arguments.cpu, out=arguments.out.resolve(), data=arguments.data.resolve())
    if arguments.stage:
        sys.path[:0] = PATHS
        return run_probe(arguments.stage, bench)
    records = check(bench, arguments.budget, [name for name in arguments.only.split(",") if name])
    return int(any(record["rc"] != 0 for record in records.values()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    temporary = Path(tempfile.gettempdir()) / f"fastssl-gpu-check-{os.getuid()}"
    parser.add_argument("--data", type=Path, default=temporary, help="folder of the samples that are made, and kept")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all stages")
    parser.add_argument("--only", default="", help=f"of {','.join(STAGES)}")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = {name for name in arguments.only.split(",") if name} - set(STAGES)
    if unknown:
        parser.error(f"no stage is named {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
