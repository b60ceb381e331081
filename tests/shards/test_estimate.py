from __future__ import annotations

from pathlib import Path

import pytest
from analytic_rooms import RoomSource

from fastssl.errors import DataError
from fastssl.shards import estimate, pack


def test_an_estimate_is_near_to_what_packing_makes(tmp_path: Path) -> None:
    source = RoomSource(tmp_path, 60)
    guess = estimate(source, size=32, samples_per_shard=25)
    manifest = pack(source, tmp_path / "out", size=32, samples_per_shard=25)
    assert (guess.samples, guess.shards, guess.tried) == (60, 3, 16)
    assert guess.estimated_bytes == pytest.approx(sum(entry.bytes for entry in manifest.shards), rel=0.1)
    assert (guess.layout, guess.domain, guess.labelled, guess.licence) == ("rooms", "synthetic", True, "CC0-1.0")
    assert guess.keys == sorted(guess.keys)
    assert guess.estimated_seconds > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_samples_tried_are_spread_over_the_dataset(tmp_path: Path) -> None:
    numbers = [int(key[5:]) for key in estimate(RoomSource(tmp_path, 400), size=8).keys]
    assert numbers[0] < 100
    assert numbers[-1] > 300


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    guess = estimate(RoomSource(tmp_path, 7, trouble="bad", at=4), size=16)
    assert [reference for reference, _ in guess.unusable] == ["4"]
    assert "no floor" in guess.unusable[0][1]
    with pytest.raises(DataError, match="no floor"):
        estimate(RoomSource(tmp_path, 1, trouble="bad", at=0), size=16)
    with pytest.raises(DataError, match="empty"):
        estimate(RoomSource(tmp_path, 0), size=16)
