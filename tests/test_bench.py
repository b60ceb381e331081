"""What limits loading and packing: every part is measured, and the part that is made slow is the one that is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product, repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from patterns import SIDE, CodedSource
from pydantic import TypeAdapter

from fastssl.batch import Record
from fastssl.bench import gpu, load, pack, parts, rates
from fastssl.bench.gpu import GpuUse, gpu_use
from fastssl.bench.load import LoadReport, Machine, Setup, Stage, SweepPoint, measure_loading
from fastssl.bench.pack import PackReport, measure_packing, packing_table, packing_verdict
from fastssl.bench.rates import Rate, measure, num_cores
from fastssl.bench.verdict import judge, loading_table
from fastssl.config import Config
from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.loader import LoaderOptions, Mixture, iterator, open_mixture, targets
from fastssl.methods import load_config
from fastssl.shards import ShardSet, encode, read_samples
from fastssl.shards import pack as pack_dataset
from fastssl.shards.archive import ShardFile
from fastssl.shards.image_codec import JpegImages, Lz4Images

SLOW = 0.008
"""Seconds per image by which a part is slowed: far more than it takes on a busy machine."""
SMALL = ["data.size=67", "data.batch_synthetic=4", "data.batch_real=4"]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("tiny", overrides=SMALL)


@pytest.fixture(scope="module")
def report(coded_synthetic: Path, coded_real: Path, config: Config) -> LoadReport:
    """Both domains, all parts and the whole sweep, with stretches as short as they can be."""
    told: list[tuple[int, int]] = []
    found = measure_loading(
        open_mixture(coded_synthetic),
        open_mixture(coded_real),
        config,
        seconds=0.1,
        progress=lambda done, total, words: told.append((done, total)),
    )
    assert told[-1] == (len(found.stages) + len(found.sweep),) * 2
    return found


def test_every_part_is_measured(report: LoadReport) -> None:
    real = {"reading", "jpeg_simplejpeg", "jpeg_dali", "floor", "images", "loader"}
    planes = {"target_inflation", "target_depth_normals", "target_edges", "targets", "loader_in_memory"}
    expected = (
        {("both", "loader")} | {("real", part) for part in real} | {("synthetic", part) for part in real | planes}
    )
    assert {(stage.domain, stage.part) for stage in report.stages} == expected
    for stage in report.stages:
        assert len(stage.rate.stretches) == rates.STRETCHES >= 5
        assert min(stage.rate.stretches) > 0
        assert stage.rate.core_ms > 0
    assert report.gpu is None
    assert report.setup.batch == {"synthetic": 4, "real": 4}


def test_the_bytes_are_those_of_the_members(report: LoadReport, coded_real: Path) -> None:
    total = sum(path.stat().st_size for path in coded_real.glob("*.tar"))
    samples = sum(1 for _ in read_samples(coded_real))
    # Headers, classes and padding of the archive are not among them.
    assert 0.5 * total / samples < report.setup.bytes_per_image["real"] < total / samples - 1024


def test_the_sweep_has_every_combination(report: LoadReport) -> None:
    threads = {2**power for power in range(10) if 2**power < num_cores()} | {num_cores()}
    seen = [(point.threads, point.prefetch) for point in report.sweep]
    assert sorted(seen) == sorted(product(threads, (1, 2, 4)))
    assert all(min(point.rate.stretches) > 0 for point in report.sweep)
    assert (report.sweep_domain, report.sweep_batch) == ("synthetic", 4)


def test_a_report_goes_through_json_unchanged(report: LoadReport) -> None:
    adapter = TypeAdapter(LoadReport)
    assert adapter.validate_json(adapter.dump_json(report)) == report


def test_the_table_shows_every_measurement_in_100_columns(report: LoadReport) -> None:
    lines = loading_table(report).splitlines()
    assert max(map(len, lines)) <= 100
    figures = [stage.rate for stage in report.stages] + [point.rate for point in report.sweep]
    assert all(any(f" {rate.images_per_s:,.0f} " in line for line in lines) for rate in figures)


def test_the_verdict_adds_up(report: LoadReport) -> None:
    verdict = judge(report)
    assert sum(verdict.fractions.values()) == pytest.approx(1)
    assert verdict.fractions[verdict.limited_by] == max(verdict.fractions.values())
    assert verdict.images_per_s == report.stages[-1].rate.images_per_s
    assert verdict.of_floor * verdict.floor_images_per_s == pytest.approx(verdict.images_per_s)


def slow_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Mixture.read_many

    def read_many(samples: Mixture, indices: NDArray[np.int64], *given: Any) -> Any:
        time.sleep(SLOW * len(indices))
        return whole(samples, indices, *given)

    monkeypatch.setattr(Mixture, "read_many", read_many)


def slow_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = fn.decoders.image

    def wait(image: Any) -> Any:
        time.sleep(SLOW)
        return image

    def image(*inputs: Any, **options: Any) -> Any:
        return fn.python_function(decode(*inputs, **options), function=wait, output_layouts="HWC")

    monkeypatch.setattr(fn.decoders, "image", image)


def slow_planes(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Any], int]) -> None:
    """Slow where more than one pixel is made of the planes that are wanted."""
    fill = targets.fill_targets

    def fill_targets(first: int, step: int, block: Any, members: Any, seen: Any, *others: Any) -> Any:
        if wanted(seen) > 1:
            time.sleep(SLOW * len(members.size))  # by all threads at once
        return fill(first, step, block, members, seen, *others)

    for module in (targets, parts):
        monkeypatch.setattr(module, "fill_targets", fill_targets)


def slow_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_planes(monkeypatch, lambda seen: seen.rows.shape[1])


def slow_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_planes(monkeypatch, lambda seen: seen.cell_rows.shape[1])


def slow_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    make = iterator.Batch

    def batch(**fields: Any) -> Any:
        time.sleep(SLOW * len(fields["keys"]) if fields["targets"] else 0)
        return make(**fields)

    monkeypatch.setattr(iterator, "Batch", batch)


@pytest.mark.parametrize(
    ("slow", "limit"),
    [
        (slow_reading, "reading"),
        (slow_decoding, "image_decoding"),
        (slow_surfaces, "depth_and_normals"),
        (slow_edges, "edges"),
        (slow_hand_over, "hand_over"),
    ],
)
def test_the_part_that_is_made_slow_limits(
    slow: Callable[[pytest.MonkeyPatch], None],
    limit: str,
    coded_synthetic: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rates, "STRETCHES", 3)
    monkeypatch.setattr(load, "_sweep_settings", lambda options: [options])
    slow(monkeypatch)
    report = measure_loading(open_mixture(coded_synthetic), None, config, seconds=0.1)
    verdict = judge(report)
    assert verdict.limited_by == limit
    assert verdict.fractions[verdict.limited_by] > 0.5
    assert verdict.images_per_s < 1 / SLOW
    assert max(stage.rate.images_per_s for stage in report.stages) > 1 / SLOW


def test_images_that_are_no_jpegs_have_a_decoder_of_their_own(
    coded_pixels: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made slow, and so it limits; whether windows are cut or resampled."""
    monkeypatch.setattr(rates, "STRETCHES", 3)
    monkeypatch.setattr(load, "_sweep_settings", lambda options: [options])
    decode = Lz4Images.decode_windows

    def slow_windows(codec: Lz4Images, members: Sequence[Any], *given: Any) -> None:
        time.sleep(SLOW * len(members))
        decode(codec, members, *given)

    monkeypatch.setattr(Lz4Images, "decode_windows", slow_windows)
    for window in ((0.5, 1.0), (config.data.size / SIDE, config.data.size / SIDE)):
        seen = config.model_copy(update={"data": config.data.model_copy(update={"window": window})})
        report = measure_loading(open_mixture(coded_pixels), None, seen, seconds=0.1)
        found = {stage.part for stage in report.stages}
        assert {"reading", "pixels", "images", "targets", "loader"} <= found
        assert not any(part.startswith("jpeg") for part in found)
        verdict = judge(report)
        assert verdict.limited_by == "image_decoding"
        assert verdict.floor_images_per_s < 2 * num_cores() / SLOW
        assert "images: decoded, a batch at a time" in loading_table(report)


def test_only_reading_and_loader_read(coded_synthetic: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = parts.MeasuredDomain("synthetic", open_mixture(coded_synthetic), config)
    options = LoaderOptions(device=torch.device("cpu"))

    def refuse(*arguments: object) -> None:
        raise AssertionError("a shard is read")

    for name in ("read", "read_many", "member", "key", "class_index"):
        monkeypatch.setattr(ShardSet, name, refuse)
    for part in parts.parts_of(domain, options):
        with parts.PARTS[part](domain, options) as work:
            if part in ("reading", "loader"):
                with pytest.raises(AssertionError, match="a shard is read"):
                    work()
            else:
                assert work() > 0


def steady(ms: float, core_ms: float = 1.0) -> Rate:
    """Of a part that takes this long per image in every stretch."""
    return Rate(images_per_s=1000 / ms, stretches=(1000 / ms,) * 5, core_ms=core_ms)


PARTS_MS = {
    "reading": 0.1,
    "jpeg_simplejpeg": 0.4,
    "jpeg_dali": 0.5,
    "floor": 0.45,
    "images": 0.8,
    "target_inflation": 0.05,
    "target_depth_normals": 0.25,
    "target_edges": 0.15,
    "targets": 0.4,
    "loader_in_memory": 1.5,
    "loader": 2.0,
}
"""Milliseconds per image; the loader keeps one of two cores busy."""


def made_up(sweep: tuple[SweepPoint, ...] = (), **changes: float) -> LoadReport:
    """A report of one domain with these figures."""
    figures = PARTS_MS | changes
    setup = Setup(
        threads=2,
        prefetch=2,
        load_on="gpu",
        hw_decoder_load=0.65,
        size=224,
        stored=256,
        resamples=True,
        augments=False,
        batch={"synthetic": 30},
        bytes_per_image={"synthetic": 50_000.0},
    )
    here = SweepPoint(threads=2, prefetch=2, load_on="gpu", hw_decoder_load=0.65, rate=steady(2.0))
    return LoadReport(
        machine=Machine(processor="a processor", cores=2, load=0.0, gpu=None, versions={}),
        setup=setup,
        stages=tuple(Stage(domain="synthetic", part=part, rate=steady(ms, core_ms=ms)) for part, ms in figures.items()),
        sweep_domain="synthetic",
        sweep_batch=30,
        sweep=(here, *sweep),
        gpu=None,
    )


def words(report: LoadReport) -> str:
    return "\n".join(judge(report).sentences)


def test_the_fractions_are_those_of_the_parts_by_themselves() -> None:
    verdict = judge(made_up())
    ms = {
        "reading": 0.1,
        "image_decoding": 0.5,
        "image_operations": 0.3,
        "target_inflation": 0.05,
        "depth_and_normals": 0.2,
        "edges": 0.1,
        "targets": 0.0,
        "hand_over": 0.35,
        "waiting": 0.4,
    }
    assert verdict.fractions == pytest.approx({activity: value / 2.0 for activity, value in ms.items()})
    assert verdict.limited_by == "image_decoding"
    assert (verdict.images_per_s, verdict.floor_images_per_s, verdict.of_floor) == pytest.approx(
        (500, 1000 / 0.45, 0.225)
    )
    assert verdict.cores_busy == pytest.approx(1)
    assert "0.50 of the 2.00 ms" in verdict.sentences[0]
    assert "about 667 images/s" in verdict.sentences[0]
    assert "22% of the 2,222" in verdict.sentences[1]


def test_two_domains_count_by_their_images_per_step() -> None:
    report = made_up()
    photos = {"reading": 1.0, "jpeg_simplejpeg": 1.2, "jpeg_dali": 0.8, "images": 0.8, "loader": 1.8}
    stages = [Stage(domain="real", part=part, rate=steady(ms)) for part, ms in photos.items()]
    both = Stage(domain="both", part="loader", rate=steady(4.0))
    report = replace(
        report,
        setup=replace(report.setup, batch={"synthetic": 30, "real": 10}),
        stages=(*report.stages, *stages, both),
    )
    verdict = judge(report)
    total = (30 * 2.0 + 10 * 1.8) / 40
    assert verdict.fractions["reading"] == pytest.approx((30 * 0.1 + 10 * 1.0) / 40 / total)
    assert verdict.fractions["target_inflation"] == pytest.approx(30 * 0.05 / 40 / total)
    assert (verdict.limited_by, verdict.images_per_s) == ("image_decoding", 250)
    assert verdict.floor_images_per_s == pytest.approx(1000 * 40 / (30 * 0.45 + 10 * 0.8))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reading": 5.0, "loader": 7.0}, "10.0 MB/s"),
        ({"loader": 20.0}, "storage"),
        ({"loader_in_memory": 9.0, "loader": 9.0}, "larger batches"),
        ({"images": 3.0, "loader_in_memory": 4.0}, "data.window=[0.875000,0.875000]"),
        ({"target_edges": 4.0, "loader_in_memory": 6.0}, "All cores are at work"),
    ],
)
def test_the_advice_follows_from_the_limit(changes: dict[str, float], expected: str) -> None:
    report = made_up(**changes)
    stages = [
        replace(stage, rate=steady(1000 / stage.rate.images_per_s, 2000 / stage.rate.images_per_s))
        for stage in report.stages
    ]
    assert expected in words(replace(report, stages=tuple(stages)))


def test_idle_threads_and_busy_machines_are_named() -> None:
    report = made_up()
    assert "1.0 of 2 cores were not at work" in words(report)
    assert "train.threads=0" in words(replace(report, setup=replace(report.setup, threads=1)))
    assert "augment.hue" in words(replace(made_up(images=3.0), setup=replace(report.setup, augments=True)))
    assert "Take this with care" not in words(report)
    assert "1.5 programs" in words(replace(report, machine=replace(report.machine, load=1.5)))


def test_other_settings_are_named_where_they_are_surely_better() -> None:
    def point(threads: int, prefetch: int, *ms: float) -> SweepPoint:
        stretches = tuple(1000 / value for value in ms)
        rate = Rate(images_per_s=median(stretches), stretches=stretches, core_ms=1.0)
        return SweepPoint(threads=threads, prefetch=prefetch, load_on="gpu", hw_decoder_load=0.65, rate=rate)

    better = words(made_up(sweep=(point(1, 2, 3.0), point(2, 4, 1.5, 1.6, 1.7))))
    assert "1.25 times as fast with train.prefetch = 4 instead of 2." in better
    assert "times as fast" not in words(made_up(sweep=(point(2, 4, 1.5, 1.6, 2.1),)))


def test_a_gpu_makes_the_targets_and_tells_its_power() -> None:
    use = GpuUse(power_w=300.0, utilisation_percent=40.0, jpeg_engine_percent=71.0, images_per_joule=50.0)
    report = made_up()
    targets_alone = [stage for stage in report.stages if not stage.part.startswith("target")]
    machine = replace(report.machine, gpu="a GPU")
    verdict = judge(replace(report, machine=machine, stages=tuple(targets_alone), gpu=use))
    assert verdict.fractions["targets"] == pytest.approx(0.7 / 2.0)
    assert (verdict.limited_by, verdict.fractions["hand_over"]) == ("targets", 0)
    assert "300 W, 50.0 images per joule; it is busy 40 % of the time, its JPEG engine 71 %" in verdict.sentences[3]
    decoding = [replace(stage, rate=steady(3.0)) if stage.part == "jpeg_dali" else stage for stage in targets_alone]
    assert "train.hw_decoder_load" in words(replace(report, machine=machine, stages=tuple(decoding), gpu=use))


class Clock:
    """Stands still until somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: 2 * self.now)  # two cores at work

    def work(self, seconds: float, images: int) -> int:
        self.now += seconds
        return images


def test_a_rate_is_the_median_of_stretches_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seconds = iter([9.0, 9.0, 0.125, 0.125, 0.5, 0.25, 1.0, 0.25])
    rate = measure(lambda: clock.work(next(seconds), 10), 1.25, warm_up=2)
    # A stretch is a quarter of a second, or one call where that takes longer.
    assert rate.stretches == (80, 20, 40, 10, 40)
    assert rate.images_per_s == 40
    assert rate.core_ms == pytest.approx(2 * 1000 * 2.25 / 60)


def test_what_was_only_begun_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def wait() -> None:
        clock.now += 0.875

    rate = measure(lambda: clock.work(0.125, 10), 0.5, wait=wait)
    assert rate.stretches == (10,) * 5


def test_power_and_engine_of_a_gpu_are_means_over_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings, the second when the work lasts longer than the pause between them."""
    clock = Clock(monkeypatch)
    power, engine = chain([100.0, 300.0], repeat(200.0)), chain([50.0, None], repeat(50.0))
    both = threading.Event()

    def readings(index: int) -> dict[str, float]:
        taken = {"gpu/power_w": next(power), "gpu/utilisation_percent": 30.0, "gpu/memory_gib": 1.0}
        if taken["gpu/power_w"] == 300.0:
            both.set()
        return taken

    def last_wait() -> None:
        assert clock.now == 100.0 or both.wait(60)

    monkeypatch.setattr(gpu, "_BETWEEN_READINGS", 0.01)
    monkeypatch.setattr(gpu, "gpu_readings", readings)
    monkeypatch.setattr(gpu, "_jpeg_engine_percent", lambda index: next(engine))
    use = gpu_use(lambda: clock.work(0.5, 100), 2.0, 0, wait=last_wait)
    assert use == GpuUse(
        power_w=200.0, utilisation_percent=30.0, jpeg_engine_percent=50.0, images_per_joule=400 / (200 * 2)
    )
    monkeypatch.setattr(gpu, "gpu_readings", lambda index: {})
    monkeypatch.setattr(gpu, "_jpeg_engine_percent", lambda index: None)
    assert gpu_use(lambda: clock.work(0.5, 100), 2.0, 0, wait=lambda: None) is None


def test_work_that_fails_ends_the_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu_readings", lambda index: {})
    with pytest.raises(ZeroDivisionError):
        gpu_use(lambda: 1 // 0, 2.0, 0, wait=lambda: None)


def test_no_engine_is_told_where_the_driver_does_not_tell_it() -> None:
    assert gpu._jpeg_engine_percent(10**6) is None


def test_what_cannot_be_loaded_is_refused(coded_synthetic: Path, coded_real: Path, config: Config) -> None:
    with pytest.raises(UsageError, match="nothing to load"):
        measure_loading(None, None, config)
    with pytest.raises(DataError, match="no target planes"):
        measure_loading(open_mixture(coded_real), None, config)
    with pytest.raises(ConfigError, match=r"at least data\.size = 131"):
        measure_loading(open_mixture(coded_synthetic), None, load_config("tiny"))


def test_damaged_samples_are_replaced_as_the_loader_does(coded_real: Path, config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "real"
    shutil.copytree(coded_real, folder)
    tar = folder / "000000.tar"
    content = bytearray(tar.read_bytes())
    end = content.index(b"\xff\xd9")
    content[end - 300 : end] = bytes(300)
    tar.write_bytes(content)
    domain = parts.MeasuredDomain("real", open_mixture(folder), config)
    assert sorted(domain.in_memory.numbers) == list(range(1, 9))


@dataclass(frozen=True)
class SlowSource(CodedSource):
    """Takes its time to read."""

    seconds: float = 0.05

    def read(self, reference: str) -> Record:
        time.sleep(self.seconds)
        return super().read(reference)


def packed(source: CodedSource, folder: Path, monkeypatch: pytest.MonkeyPatch) -> PackReport:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    found = measure_packing(source, size=64, limit=9)
    assert not list(folder.iterdir())
    return found


def test_the_steps_of_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packed(CodedSource(12, "synthetic"), tmp_path, monkeypatch)
    assert min(value for step, value in found.step_ms.items() if step != "rest") > 0
    assert (found.samples, found.unusable, found.layout) == (9, 0, "coded")
    assert found.samples_per_s > 0
    assert found.megabytes_per_s * 1e6 / found.samples_per_s == pytest.approx(found.bytes_per_sample, rel=0.1)
    real = packed(CodedSource(9, "real"), tmp_path, monkeypatch)
    assert real.step_ms["targets"] == 0
    whole = pack_dataset(CodedSource(9, "real"), tmp_path / "out", size=64, samples_per_shard=2)
    assert real.bytes_per_sample == sum(shard.bytes for shard in whole.shards) / 9
    assert max(map(len, packing_table(found).splitlines())) <= 100
    assert TypeAdapter(PackReport).validate_json(TypeAdapter(PackReport).dump_json(found)) == found


def slowed(monkeypatch: pytest.MonkeyPatch, places: list[Any], name: str) -> None:
    work = getattr(places[0], name)

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return work(*arguments, **options)

    for place in places:
        monkeypatch.setattr(place, name, slow)


@pytest.mark.parametrize(
    ("places", "name", "step"),
    [
        ([], "", "reading"),
        ([simplejpeg], "encode_jpeg", "image"),
        ([encode, pack], "compressed", "targets"),
        ([JpegImages], "decode_windows", "proof"),
        ([encode], "nearest_edge", "rest"),
        ([ShardFile], "add", "writing"),
    ],
)
def test_the_step_that_is_made_slow_limits(
    places: list[Any], name: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if places:
        slowed(monkeypatch, places, name)
    source = CodedSource(4, "synthetic") if places else SlowSource(4, "synthetic")
    found = packed(source, tmp_path, monkeypatch)
    assert found.limited_by == step
    assert found.step_ms[found.limited_by] > 40  # the rest is a difference of times
    assert found.samples_per_s < 1 / 0.05
    assert pack._WORDS[found.limited_by] in packing_verdict(found)[0]


def test_a_source_without_a_usable_sample_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Broken(CodedSource):
        def read(self, reference: str) -> Record:
            raise DataError("an image cannot be read", where=reference)

    with pytest.raises(DataError, match="no image of the dataset can be used"):
        measure_packing(Broken(3, "real"))
    with pytest.raises(DataError, match="holds no samples"):
        measure_packing(CodedSource(0, "real"))


def test_packing_is_measured_without_torch_and_dali() -> None:
    code = "import sys, fastssl.bench.pack; print({'torch', 'nvidia.dali'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
