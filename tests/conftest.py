"""Datasets that several tests read, packed for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from patterns import SIDE, CodedSource

from fastssl.shards import pack


@pytest.fixture(scope="session")
def coded_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven packed patterns with labels, in three shards."""
    out = tmp_path_factory.mktemp("coded") / "synthetic"
    pack(CodedSource(11, "synthetic"), out, size=SIDE, samples_per_shard=4, jpeg_quality=98)
    return out


@pytest.fixture(scope="session")
def coded_real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine packed patterns without labels, in two shards; two share a class."""
    out = tmp_path_factory.mktemp("coded") / "real"
    pack(CodedSource(9, "real"), out, size=SIDE, samples_per_shard=5, jpeg_quality=98)
    return out
