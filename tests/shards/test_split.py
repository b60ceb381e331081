from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import pytest
from analytic_rooms import RoomSource
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.errors import UsageError
from fastssl.shards import key_place, pack, parse_split, read_samples

KEYS = st.from_regex(r"[0-9a-z_-]{1,89}", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(KEYS)
def test_a_key_s_place_is_its_hash(key: str) -> None:
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    exact = Fraction(int(digest, 16), 2**64)
    assert 0 <= key_place(key) < 1
    assert 0 <= exact - Fraction(key_place(key)) < Fraction(1, 2**53)


def test_places_are_spread_evenly() -> None:
    places = [key_place(f"room_{number:05d}") for number in range(10_000)]
    assert all(abs(sum(place < x / 10 for place in places) - 1000 * x) < 200 for x in range(1, 10))


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("train=0.95,val=0.05", {"train": (0.0, 0.95), "val": (0.95, 1.0)}),
        ("a=0.25, b=0.25 ,c=0.5", {"a": (0.0, 0.25), "b": (0.25, 0.5), "c": (0.5, 1.0)}),
        ("all=1", {"all": (0.0, 1.0)}),
    ],
)
def test_splits_are_read(text: str, intervals: dict[str, tuple[float, float]]) -> None:
    found = parse_split(text)
    assert list(found) == list(intervals)
    assert all(found[name] == pytest.approx(intervals[name]) for name in found)
    assert found[list(found)[-1]][1] == 1.0


@pytest.mark.parametrize(
    "text", ["", "train", "train=0.9", "a=0.5,a=0.5", "a=1.5", "a=0,b=1", "a=0.5,b=0.6", "../x=1", "a=-1,b=2", "a=1..,"]
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="split"):
        parse_split(text)


def test_parts_hold_each_sample_once_and_by_its_key(tmp_path: Path) -> None:
    keys = {}
    for name, part in parse_split("a=0.3,b=0.7").items():
        manifest = pack(RoomSource(tmp_path, 40), tmp_path / name, size=16, part=part)
        keys[name] = [sample.key for sample in read_samples(tmp_path / name)]
        assert manifest.settings.selection.part == pytest.approx(part)
    assert sorted(keys["a"] + keys["b"]) == [f"room_{number:03d}" for number in range(40)]
    assert all(key_place(key) < 0.3 for key in keys["a"])
    assert all(key_place(key) >= 0.3 for key in keys["b"])


def test_a_limit_takes_the_first_samples(tmp_path: Path) -> None:
    pack(RoomSource(tmp_path, 40), tmp_path / "out", size=16, limit=3)
    assert [sample.key for sample in read_samples(tmp_path / "out")] == ["room_000", "room_001", "room_002"]
