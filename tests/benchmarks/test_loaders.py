"""The loaders that are compared give the tensors that Pillow and NumPy give from the same files."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SAMPLES = 8
WINDOWS = ((3, 11, False), (29, 29, True))


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield {name: importlib.import_module(name) for name in ("loader_data", "loader_peers", "loaders")}


@pytest.fixture(scope="module")
def data(modules: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders")
    modules["loader_data"].prepare(folder, SAMPLES, lambda words: None)
    return folder


@pytest.fixture(autouse=True)
def torch_keeps_its_threads() -> Iterator[None]:
    """A peer sets their number for its own process; other tests compare digits that depend on it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves that to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("loader", "form", "codecs"),
    [
        ("torch", "source", "opencv"),
        ("torch", "resized", "fast"),
        ("webdataset", "source", "fast"),
        ("spdl", "resized", "opencv"),
        ("dali", "source", None),
        ("dali", "resized", None),
        ("fastssl", "resized", None),
    ],
)
def test_a_loader_gives_the_tensors_of_the_reference(
    modules: dict[str, ModuleType], data: Path, loader: str, form: str, codecs: str | None
) -> None:
    peers, samples = modules["loader_peers"], modules["loader_data"]
    missing = peers.missing_modules(loader, codecs)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    files = samples.resized_files(data, SAMPLES) if form == "resized" else samples.source_files(data, SAMPLES)
    for window in WINDOWS:
        settings = {"batch": SAMPLES, "workers": 0 if loader in ("torch", "webdataset") else 2, "fixed": window}
        batches = peers.open_loader(loader, data, SAMPLES, form, settings | ({"codecs": codecs} if codecs else {}))
        batch = [np.asarray(part) for part in next(batches)]
        expected = [samples.reference(files, samples.View(sample, *window)) for sample in range(SAMPLES)]
        found = modules["loaders"].compare(batch, [np.stack(parts) for parts in zip(*expected, strict=True)])
        modules["loaders"].allow(found, loader, image_mean=0.5)


def test_what_is_not_the_reference_is_refused(modules: dict[str, ModuleType], data: Path) -> None:
    samples, loaders = modules["loader_data"], modules["loaders"]
    files = samples.resized_files(data, SAMPLES)
    expected = [part[None] for part in samples.reference(files, samples.View(0, 3, 11, False))]
    good = [part.astype(np.bool_ if number == 4 else np.float32) for number, part in enumerate(expected)]
    loaders.allow(loaders.compare(good, expected), "itself", image_mean=0.5)
    for changed, by in ((0, np.float32(0.01)), (1, np.float32(0.001)), (2, np.float32(0.01)), (3, np.float32(1))):
        bad = [part + by if number == changed else part for number, part in enumerate(good)]
        with pytest.raises(ValueError, match="does not give the reference's tensors"):
            loaders.allow(loaders.compare(bad, expected), "changed", image_mean=0.5)
    with pytest.raises(ValueError, match="image is float64"):
        loaders.compare([good[0].astype(np.float64), *good[1:]], expected)


def test_random_views_show_each_sample_once_per_epoch_and_stay_inside(modules: dict[str, ModuleType]) -> None:
    samples = modules["loader_data"]
    views = iter(samples.Views(50))
    for _ in range(2):
        epoch = [next(views) for _ in range(50)]
        assert sorted(view.sample for view in epoch) == list(range(50))
        assert {view.flip for view in epoch} == {False, True}
        assert all(0 <= view.top <= 29 and 0 <= view.left <= 29 for view in epoch)
        assert len({(view.top, view.left) for view in epoch}) > 25
