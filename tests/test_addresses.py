"""Addresses: which are of a store, and which path stands for the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastssl.addresses import is_remote, local_path, remote_address
from fastssl.config import dataset_path
from fastssl.errors import UsageError


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/data/rooms", "/data/rooms"),
        ("data/rooms", "data/rooms"),
        ("file:///data/rooms", "/data/rooms"),
        ("FILE:///data/rooms", "/data/rooms"),
        ("file://localhost/data/rooms", "/data/rooms"),
        ("file://LocalHost/data/rooms", "/data/rooms"),
        ("file:///data/with%20blank", "/data/with blank"),
        ("/data/100%25", "/data/100%25"),
        ("file:/data/rooms", "/data/rooms"),
        ("File:/data/rooms", "/data/rooms"),
        ("local:///data/rooms", "/data/rooms"),
        ("file:rooms", "file:rooms"),
        ("1 of://2", "1 of:/2"),
    ],
)
def test_every_way_to_write_a_path(address: str, path: str) -> None:
    assert not is_remote(address)
    assert local_path(address) == Path(path)
    assert dataset_path(address) == str(Path(path).absolute())


def test_a_name_with_percent_signs_is_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a%20b").mkdir()
    assert local_path(f"file://{tmp_path}/a%20b") == tmp_path / "a%20b"


@pytest.mark.parametrize("address", ["file://server/data", "file://localhostile/data", "FILE://x"])
def test_a_file_of_another_machine_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="another machine"):
        local_path(address)


def test_a_scheme_may_be_written_in_capitals() -> None:
    for address in ("S3://Bucket/Rooms", "s3://Bucket/Rooms"):
        assert is_remote(address)
        assert remote_address(address) == dataset_path(address) == "s3://Bucket/Rooms"


@pytest.mark.parametrize("address", ["file://", "file:///%00", "FILE://localhost"])
def test_an_address_that_names_no_file_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="names no file"):
        local_path(address)
