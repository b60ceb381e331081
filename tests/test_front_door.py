"""The package's front door, and the loop that README shows."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patterns import CodedSource
from settled import comes

import fastssl
from fastssl.batch import Batch
from fastssl.errors import CheckpointError, ConfigError, DataError, DeviceError, FastsslError, UsageError

ROOT = Path(__file__).parents[1]


def first(path: Path | dict[str, float], count: int = 6, **options: object) -> list[Batch]:
    with fastssl.load(path, **{"batch_size": 4, "size": 67, "device": "cpu", "threads": 2, **options}) as batches:
        return list(islice(batches, count))


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and torch.equal(one.image, other.image)


def test_readme_s_loop_runs(coded_synthetic: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import fastssl\n.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    code = code.replace('"rooms"', repr(str(coded_synthetic)))
    code = code.replace("batch_size=64, size=227", "batch_size=4, size=99")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([4, 3, 99, 99])" in done.stdout


def test_packing_and_reading_load_neither_torch_nor_dali() -> None:
    code = (
        "import sys, fastssl; fastssl.pack, fastssl.read_samples, fastssl.open_source; "
        "print([name for name in ('torch', 'nvidia.dali') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_was_packed_is_read_and_loaded(tmp_path: Path) -> None:
    photos = ROOT / "shards" / "sample" / "real_val"
    keys = [sample.key for sample in fastssl.read_samples(photos)]
    batches = first(photos, 20, size=99)
    assert {key for batch in batches for key in batch.keys} == set(keys)  # 80 of 60 samples: an epoch and more
    assert batches[0].image.shape == (4, 3, 99, 99)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastssl.nothing  # noqa: B018


def test_the_seed_alone_decides(coded_synthetic: Path) -> None:
    one, again, other = (first(coded_synthetic, seed=seed, window=(0.5, 1.0)) for seed in (3, 3, 4))
    assert all(map(same, one, again))
    assert not all(map(same, one, other))


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 1), (2, 1), (2, 2)])
def test_a_state_goes_on_with_the_samples_that_would_have_come(
    coded_synthetic: Path, batch_size: int, world_size: int
) -> None:
    whole = first(coded_synthetic, 8)
    with fastssl.load(coded_synthetic, batch_size=4, size=67, device="cpu") as batches:
        list(islice(batches, 3))
        state = batches.state_dict()
    ranks = [
        first(coded_synthetic, 20 // (batch_size * world_size), batch_size=batch_size, world_size=world_size, rank=rank,
              state=state)
        for rank in range(world_size)
    ]  # fmt: skip
    found = [key for step in zip(*ranks, strict=True) for batch in step for key in batch.keys]
    assert found == [key for batch in whole[3:] for key in batch.keys]


def test_targets_are_those_that_are_asked_for(coded_synthetic: Path, coded_real: Path) -> None:
    assert set(first(coded_synthetic, 1, targets=("edge",))[0].targets) == {"edge", "stored_edge_fraction"}
    assert set(first(coded_synthetic, 1, targets=())[0].targets) == set()
    assert set(first(coded_real, 1)[0].targets) == {"class_index"}
    with pytest.raises(DataError, match="no target planes"):
        first(coded_real, 1, targets=("depth",))


def test_threads_and_descriptors_are_let_go(coded_synthetic: Path) -> None:
    threads = threading.active_count()
    first(coded_synthetic, 1)
    assert comes(lambda: threading.active_count() <= threads)
    descriptors = num_descriptors()
    for _ in range(5):
        first(coded_synthetic, 2)
    assert comes(lambda: threading.active_count() <= threads)
    assert num_descriptors() <= descriptors + 1


def test_what_cannot_be_is_refused(coded_synthetic: Path, coded_real: Path) -> None:
    with pytest.raises(ConfigError, match="'flip'"):
        first(coded_synthetic, flop=1.0)
    with pytest.raises(ConfigError, match="rank is 2 of 2"):
        first(coded_synthetic, rank=2, world_size=2)
    with fastssl.load(coded_real, batch_size=4, size=67, device="cpu") as batches, pytest.raises(CheckpointError):
        first(coded_synthetic, state=batches.state_dict())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", 2.5, "batch_size"),
        ("batch_size", 0, "batch_size"),
        ("batch_size", "8", "batch_size"),
        ("batch_size", 10**9, "batch_size"),
        ("threads", 10**6, "threads"),
        ("targets", 3, "no such target"),
        ("targets", [["depth"]], "no such target"),
        ("seed", -1, "seed"),
        ("prefetch", 0, "prefetch"),
        ("half", "yes", "half"),
        ("world_size", 0, "world_size"),
        ("batch_real", 4, "batch_real"),
        ("synthetic", {}, "synthetic"),
        ("device", "gpu", "cpu or cuda"),
        ("device", "meta", "cpu or cuda"),
        ("device", 1.5, "cpu or cuda"),
        ("device", "cuda:99", "cuda:99"),
        ("size", 67.0, "size"),
        ("augment", {"blur": 2}, "blur"),
        ("augment", {"shake": 2}, "shake"),
        ("augment", 5, "seen: 5\n  expected: a mapping"),
        ("batch_size", True, "batch_size"),
        ("batch_size", np.array([2, 2]), "batch_size"),
        ("batch_size", torch.tensor(2.0), "batch_size"),
        ("size", int, "size"),
        ("max_bad", np.array([1, 2]), "max_bad"),
    ],
)
def test_arguments_that_cannot_be_are_named(coded_synthetic: Path, name: str, value: object, words: str) -> None:
    with pytest.raises(FastsslError, match=words) as caught:
        first(coded_synthetic, **{name: value})
    assert isinstance(caught.value, ConfigError | DeviceError)
    assert "where: \n" not in str(caught.value)


def test_whole_numbers_of_numpy_are_whole_numbers(coded_synthetic: Path) -> None:
    numbers = {"batch_size": np.int64(4), "size": np.int32(67), "seed": np.uint8(3), "max_bad": np.int64(0)}
    assert all(map(same, first(coded_synthetic, **numbers), first(coded_synthetic, seed=3)))


@pytest.mark.parametrize(
    ("source", "choices", "words"),
    [
        ("photos", {}, r"this is no source(.|\n)*seen: 'photos'(.|\n)*open_source\('photos'\)"),
        (Path("photos"), {}, "this is no source"),
        (b"/photos", {}, "this is no source"),
        (None, {"workers": True}, "where: workers\n  seen: True"),
        (None, {"workers": np.array([1, 2])}, "where: workers"),
        (None, {"workers": "2"}, "where: workers\n  seen: '2'\n  expected: a whole number, 1 or more"),
        (None, {"workers": 1.5}, "seen: 1.5"),
        (None, {"workers": 0}, "1 or more"),
        (None, {"max_bad": "x"}, "where: max_bad\n  seen: 'x'"),
        (None, {"size": "large"}, "where: size\n  seen: large"),
    ],
)
def test_what_cannot_be_packed_is_named(tmp_path: Path, source: Any, choices: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fastssl.pack(source or CodedSource(3, "real"), tmp_path / "out", **choices)
    assert not (tmp_path / "out").exists()


def test_renders_and_photos_are_no_mixture(coded_synthetic: Path, coded_real: Path) -> None:
    words = r"seen: images alone\n(.|\n)*expected: images with depth, normals and contours"
    with pytest.raises(DataError, match=words):
        first({str(coded_synthetic): 1.0, str(coded_real): 1.0})


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf")}, {"a": "1"}])
def test_weights_are_numbers_above_0(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        first(weights)


@pytest.mark.parametrize("targets", [("foo",), "depth", ("depth", "foo")])
def test_targets_that_do_not_exist_are_refused(coded_synthetic: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="no such target"):
        first(coded_synthetic, targets=targets)


def test_targets_may_come_one_by_one(coded_synthetic: Path) -> None:
    (batch,) = first(coded_synthetic, 1, targets=(name for name in ["depth"]))
    assert batch.depth.shape == (4, 1, 67, 67)


@pytest.mark.parametrize("data", ["", None, [], 3, b"rooms"])
def test_what_is_no_dataset_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match="this is no dataset"):
        fastssl.load(data, batch_size=4, size=67)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [
        {},
        3,
        "abc",
        {"position": True, "fingerprint": ""},
        {"position": 10**30, "fingerprint": ""},
        {"position": -4, "fingerprint": ""},
        {"position": 4.5, "fingerprint": ""},
    ],
)
def test_a_state_that_is_none_is_refused(coded_synthetic: Path, state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="cannot be used"):
        first(coded_synthetic, state=state)


def test_a_closed_loader_says_so(coded_synthetic: Path) -> None:
    with fastssl.load(coded_synthetic, batch_size=4, size=67, device="cpu") as batches:
        batch = next(batches)
    with pytest.raises(UsageError, match="is closed"):
        next(batches)
    with pytest.raises(KeyError, match="the batch has no class_index"):
        first(coded_synthetic, 1, targets=("depth",))[0].class_index  # noqa: B018
    assert batch.depth.shape == (4, 1, 67, 67)
    assert "load" in dir(fastssl)
