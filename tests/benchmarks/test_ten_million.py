"""The benchmark of many samples, with few: its batches are the samples that are due, or it says so."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_batches_are_read_from_shards_that_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("ten_million")
    monkeypatch.setattr(benchmark, "PER_SHARD", 100)
    folder = tmp_path / "data"
    benchmark.make(folder, 300)
    assert len(list(folder.glob("*.idx"))) == 3
    assert (folder / "000002.tar").stat().st_nlink == 3
    benchmark.forget_indexes(folder)
    first = benchmark.measure(folder, 0, "")
    border = benchmark.measure(folder, 300 - benchmark.BATCH // 2, first["fingerprint"])
    assert border["mib"]["peak"] >= border["mib"]["batch"]
    monkeypatch.setattr(benchmark, "PER_SHARD", 99)
    with pytest.raises(ValueError, match="were due"):
        benchmark.measure(folder, 0, "")
