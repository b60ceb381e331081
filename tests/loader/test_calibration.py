"""How much of the decoding the JPEG engine gets: the choice on made-up times, the comparison on images that change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from damaged import overwritten
from decoding import assert_near_libjpeg, changed_at_leisure, changed_beside_steps
from torch import Tensor

from fastssl.batch import PLANES, Target
from fastssl.config import AugmentConfig, Config, DataConfig
from fastssl.errors import ConfigError
from fastssl.loader import (
    Domain,
    LoaderOptions,
    Mixture,
    RankSlice,
    ViewSettings,
    calibration,
    endless_plan,
    graph,
    load_batches,
    open_mixture,
)
from fastssl.loader.calibration import (
    LOADS,
    Calibration,
    calibrated,
    changed_images,
    chosen,
    fastest,
    seconds_per_batch,
)
from fastssl.loader.damage import Damage
from fastssl.loader.iterator import Batches, known_damage
from fastssl.loader.plan import Plan
from fastssl.methods import load_config
from fastssl.train import calibrated_options, run

CPU = torch.device("cpu")
BATCH, SIZE = 4, 67


@pytest.mark.parametrize(
    ("times", "load"),
    [
        ((5.0, 4.0, 3.0, 2.0, 1.0), 1.0),
        ((1.0, 2.0, 3.0, 4.0, 5.0), 0.0),
        ((5.0, 4.0, 1.0, 4.0, 5.0), 0.65),
        ((1.02, 1.0, 1.0, 1.0, 1.0), 0.0),
        ((1.04, 1.02, 1.0, 1.1, 1.1), 0.35),
        ((2.0, 1.04, 1.01, 1.0, 1.2), 0.65),
    ],
)
def test_the_fastest_fraction_is_taken_and_of_equals_the_smallest(times: tuple[float, ...], load: float) -> None:
    assert fastest(dict(zip(LOADS, times, strict=True))) == load


def test_an_engine_that_overwrites_images_is_left_out() -> None:
    found = chosen(lambda load: 3 if load == 1.0 else 0, lambda load: 0.010 - 0.004 * load)
    assert (found.load, found.is_safe) == (0.0, False)
    assert "3 images decoded by the engine" in found.reason


def test_a_safe_engine_is_taken_where_it_is_fastest() -> None:
    found = chosen(lambda load: 3 if load == 0.65 else 0, lambda load: 0.010 - 0.004 * load)
    assert (found.load, found.is_safe) == (1.0, True)
    assert dict(found.seconds) == {load: 0.010 - 0.004 * load for load in LOADS}
    assert "10.0 with 0%" in found.reason
    assert "6.0 with 100%" in found.reason


def test_an_engine_that_is_not_fastest_is_not_checked() -> None:
    found = chosen(lambda load: pytest.fail("images are read late"), lambda load: 0.010 + 0.004 * load)
    assert (found.load, found.is_safe) == (0.0, True)


def test_the_time_of_a_batch_is_the_median_stretch_after_the_warm_up() -> None:
    """On a clock that goes on by what each batch takes: 9 s in the warm-up, then 1, 5 and 2 s a batch."""
    now = 0.0

    def images() -> Iterator[Tensor]:
        nonlocal now
        for seconds in [9.0] * 3 + [1.0] * 4 + [5.0] * 4 + [2.0] * 4:
            now += seconds
            yield torch.zeros(1)

    assert seconds_per_batch(images(), CPU, warm_up=3, clock=lambda: now) == 2.0


def plan(samples: Mixture) -> Plan:
    data = DataConfig(size=SIZE, window=(0.6, 1.0))
    rank_slice = RankSlice(order=samples.order(seed=5, stream=0), batch_size=BATCH)
    return endless_plan(ViewSettings(data=data, augment=AugmentConfig(), stored=samples.image_size), rank_slice)


def test_a_damaged_sample_is_told_and_counted_once(
    coded_synthetic: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many pipelines read it."""
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 6, "jpg", lambda stream: b"")
    samples, options = open_mixture(tmp_path / "damaged"), LoaderOptions(device=CPU, threads=2, max_bad=1)
    damage = known_damage(samples, options, ())
    made = [list(islice(load_batches(samples, plan(samples), options, (), damage), 3)) for _ in range(2)]
    assert [batch.keys for batch in made[0]] == [batch.keys for batch in made[1]]
    assert ["coded_006" in record.getMessage() for record in caplog.records] == [True]
    assert len(damage.places()) == 1


def test_images_that_stay_as_they_are_pass(coded_synthetic: Path) -> None:
    """A real pipeline, whose batches begin anew each time."""
    samples = open_mixture(coded_synthetic)
    options = LoaderOptions(device=CPU, threads=2)
    begun = []

    def images() -> Iterator[Tensor]:
        begun.append(True)
        return (batch.image for batch in load_batches(samples, plan(samples), options, ("class_index",)))

    assert changed_images(images, CPU) == 0
    assert len(begun) == 2


def test_images_stay_as_they_are_beside_training_steps(coded_synthetic: Path) -> None:
    assert changed_at_leisure(coded_synthetic, CPU, 0.0) == 0
    assert changed_beside_steps(coded_synthetic, CPU, 0.0) == 0


def test_images_are_libjpeg_s() -> None:
    assert_near_libjpeg(CPU, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("overwritten", [[], [(0, 0)], [(7, 3)], [(2, 1), (2, 2), (5, 0)]])
def test_images_that_change_while_they_wait_are_counted(dtype: torch.dtype, overwritten: list[tuple[int, int]]) -> None:
    """The second reading finds a few pixels of another image in some; the smallest change is one bit of one pixel."""
    readings = count()

    def images() -> Iterator[Tensor]:
        reading = next(readings)
        generator = torch.Generator().manual_seed(0)
        for batch in count():
            image = torch.rand(BATCH, SIZE, SIZE, 3, generator=generator).to(dtype).permute(0, 3, 1, 2)
            for where, number in overwritten:
                if reading == 1 and where == batch:
                    pixel = image[number, 1, 40, 5:6].clone()
                    image[number, 1, 40, 5:6] = torch.nextafter(pixel, torch.ones_like(pixel))
            yield image

    assert changed_images(images, CPU) == len(overwritten)


def test_on_the_cpu_nothing_is_read(coded_synthetic: Path) -> None:
    samples = open_mixture(coded_synthetic)
    found = calibrated(samples, lambda: pytest.fail("a plan is made"), LoaderOptions(device=CPU))
    assert (found.load, found.is_safe, dict(found.seconds)) == (0.0, True, {})


def domain(path: Path, config: Config) -> Domain:
    return Domain(name="synthetic", samples=open_mixture(path), targets=frozenset(PLANES), config=config)


@pytest.mark.parametrize(("given", "load"), [("auto", 0.0), ("0", 0.0), ("0.9", 0.9)])
def test_the_fraction_may_be_given_instead(coded_synthetic: Path, given: str, load: float) -> None:
    config = load_config("tiny", overrides=[f"train.hw_decoder_load={given}"])
    options = calibrated_options(domain(coded_synthetic, config), CPU)
    assert options.hw_decoder_load == load
    assert replace(options, hw_decoder_load=0.0, load_on="cpu") == LoaderOptions(
        device=CPU, max_bad=config.data.max_bad
    )


@pytest.mark.parametrize(
    ("settings", "load_on", "load"),
    [
        ([], "gpu", 0.65),
        (["train.load_on=gpu"], "gpu", 0.65),
        (["train.load_on=cpu"], "gpu", 0.65),  # as this test's `calibrated` says
        (["train.hw_decoder_load=0.9"], "gpu", 0.9),
        (["train.hw_decoder_load=0"], "gpu", 0.0),
        (["train.hw_decoder_load=0.9", "train.load_on=cpu"], "cpu", 0.9),
        (["train.deterministic=true"], "cpu", 0.0),
        (["train.deterministic=true", "train.load_on=gpu"], "gpu", 0.0),
    ],
)
def test_only_what_is_left_open_is_found_out(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], load_on: str, load: float
) -> None:
    asked = []

    def found(
        samples: Mixture, plan: Callable[[], Plan], options: LoaderOptions, targets: Collection[Target], load_on: str
    ) -> Calibration:
        steps = [len(samples) for samples, _ in islice(plan().steps, 3)]
        asked.append((steps, frozenset(targets), load_on))
        return Calibration(load_on="gpu", load=0.65, is_safe=True, reason="", seconds={})

    monkeypatch.setattr(run, "calibrated", found)
    overrides = ["data.size=67", "data.batch_synthetic=4", *settings]
    config = load_config("tiny", overrides=overrides)
    options = calibrated_options(domain(coded_synthetic, config), CPU)
    assert (options.load_on, options.hw_decoder_load) == (load_on, load)
    assert asked == ([([4] * 3, frozenset(PLANES), config.train.load_on)] if load == 0.65 else [])


@pytest.mark.parametrize(("settled", "reason"), [("auto", "there is no GPU"), ("cpu", "there is no GPU")])
def test_without_a_gpu_the_cpu_makes_the_batches(coded_synthetic: Path, settled: str, reason: str) -> None:
    samples = open_mixture(coded_synthetic)
    found = calibrated(samples, lambda: pytest.fail("a plan is made"), LoaderOptions(device=CPU), load_on=settled)
    assert (found.load_on, found.reason) == ("cpu", reason)


def test_a_gpu_s_batches_are_the_cpu_s_where_that_is_set(coded_synthetic: Path) -> None:
    options = LoaderOptions(device=torch.device("cuda"))
    samples = open_mixture(coded_synthetic)
    found = calibrated(samples, lambda: pytest.fail("a plan is made"), options, load_on="cpu")
    assert (found.load_on, found.load) == ("cpu", 0.0)


@pytest.mark.parametrize(
    ("cpu_seconds", "load_on", "load"), [(None, "gpu", 0.35), (0.009, "gpu", 0.35), (0.008, "cpu", 0.0)]
)
def test_the_cpu_is_taken_where_it_is_as_fast(cpu_seconds: float | None, load_on: str, load: float) -> None:
    times = dict(zip(LOADS, (0.010, 0.008, 0.009, 0.010, 0.011), strict=True))
    found = chosen(lambda load: 0, times.__getitem__, cpu_seconds)
    assert (found.load_on, found.load, found.is_safe) == (load_on, load, True)
    assert ("by the CPU" in found.reason) == (cpu_seconds is not None)


def test_an_engine_that_is_slower_than_the_cpu_is_not_checked() -> None:
    found = chosen(lambda load: pytest.fail("images are read late"), lambda load: 0.010 - 0.004 * load, 0.001)
    assert (found.load_on, found.load, found.is_safe) == ("cpu", 0.0, True)


def test_all_ways_are_tried(coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial as on a GPU, for which the CPU stands in: all of it but the device runs here."""
    samples, tried = open_mixture(coded_synthetic), list[tuple[str, float]]()

    def on_cpu(
        samples: Mixture, plan: Plan, options: LoaderOptions, targets: Collection[Target], damage: Damage
    ) -> Batches:
        tried.append((options.load_on, options.hw_decoder_load))
        return load_batches(samples, plan, replace(options, device=CPU, load_on="cpu"), targets, damage)

    monkeypatch.setattr(calibration, "load_batches", on_cpu)
    monkeypatch.setattr(graph, "device_number", lambda device: None)
    options = LoaderOptions(device=torch.device("meta"), threads=2)
    found = calibrated(samples, lambda: plan(samples), options, PLANES)
    assert tried[: len(LOADS) + 1] == [("cpu", 0.0), *(("gpu", load) for load in LOADS)]
    assert set(found.seconds) == set(LOADS)
    assert found.cpu_seconds is not None
    assert (found.load_on == "cpu") == (found.cpu_seconds <= found.seconds[fastest(found.seconds)])


@pytest.mark.parametrize("given", ["1.5", "often", "[0.5]"])
def test_a_fraction_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"hw_decoder_load is .*; expected a fraction from 0 to 1, or auto"):
        load_config("tiny", overrides=[f"train.hw_decoder_load={given}"])
