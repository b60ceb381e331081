"""The benchmark of loading on a GPU, run on the CPU: tensors as in the reference, and the best setting is found."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastssl.loader import open_mixture

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SAMPLES = 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("loaders_gpu")


@pytest.fixture(scope="module")
def data(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders_gpu")
    bench.prepare(folder, SAMPLES, lambda words: None)
    return folder


@pytest.mark.parametrize(("loader", "form"), [("fastssl", "resized"), ("DALI", "source"), ("DALI", "resized")])
def test_a_loader_gives_the_tensors_of_the_reference(bench: ModuleType, data: Path, loader: str, form: str) -> None:
    files = (bench.source_files if form == "source" else bench.resized_files)(data, SAMPLES)
    begin = partial(bench.dali_batches, files, CPU)
    if loader == "fastssl":
        begin = partial(bench.fastssl_batches, open_mixture(str(data / "shards")), CPU)
    found = bench.check(bench.Contender(loader, begin, files), bench.Point(2, 0.0))
    assert set(found) == {"image_mean", "depth", "normal", "edge", "valid"}
    assert found["image_mean"] < 0.5


def test_the_best_setting_is_that_of_the_highest_median(bench: ModuleType, data: Path) -> None:
    points = [bench.Point(threads, load) for threads in (4, 16) for load in (0.0, 1.0)]
    contender = bench.Contender("one", lambda *given: iter(()), bench.source_files(data, SAMPLES))
    rates = [[1, 2, 3, 4, 5], [9, 9, 1, 1, 1], [4, 4, 4, 3, 3], [3, 3, 3, 3, 99]]
    contender.rates = dict(zip(points, rates, strict=True))
    assert contender.best == points[2]
