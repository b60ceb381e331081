"""The benchmark of loading on a GPU, run on the CPU: tensors as in the reference, and the best setting is found."""

from __future__ import annotations

import importlib
import json
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


@pytest.mark.usefixtures("torch_as_it_was")
def test_pairs_come_first_and_every_setting_is_kept(
    bench: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each written as soon as it is known."""
    (tmp_path / str(SAMPLES)).symlink_to(data)
    words = ["--cpu", "--samples", f"{SAMPLES}", "--batch", "4", "--seconds", "0.001", "--data", str(tmp_path)]
    arguments = bench.parsed([*words, "--threads", "2,1", "--loads", "0"])
    monkeypatch.setattr(bench, "turns", lambda works, meter: {name: {"median": work()} for name, work in works.items()})
    kept = list[str]()
    result = bench.measure(arguments, CPU, lambda known: kept.append(json.dumps(known)))
    assert json.loads(kept[0])["pairs_over_step"] == 1
    assert "settings" not in kept[0]
    num = [sum(map(len, json.loads(known).get("settings", {}).values())) for known in kept]
    assert num == [0, 1, 2, 3, 4, 5, 6, 6]
    assert [row["threads"] for row in result["settings"]["fastssl"]] == [2, 1]
    assert set(result["fastssl_over"]) == {"DALI, source files", "DALI, resized files"}


def test_parts_and_settings_are_those_asked_for(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = bench.parsed(["--cpu", "--only", "settings", "--threads", "8,4", "--loads", "1,0.65"])
    assert (arguments.only, arguments.threads, arguments.loads) == (["settings"], [8, 4], [1.0, 0.65])
    with pytest.raises(SystemExit):
        bench.parsed(["--cpu", "--only", "everything"])
    assert "no part is named everything" in capsys.readouterr().err
