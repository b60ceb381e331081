from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources.trees.tfrecord import serialised, write_records
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as tensorboards_crc32c

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources.tfrecord import example_features, masked_crc32c, read_record, record_extents

RECORDS = [b"first", b"", bytes(range(256)) * 40]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_records(tmp_path / "a.tfrecord", *RECORDS)
    return tmp_path / "a.tfrecord"


def test_records_are_those_that_were_written(path: Path) -> None:
    assert [read_record(path, number) for number in range(3)] == RECORDS
    extents = list(record_extents(path))
    assert [length for _, length in extents] == [len(record) for record in RECORDS]
    data = path.read_bytes()
    assert [data[start : start + length] for start, length in extents] == RECORDS
    with pytest.raises(DataError, match=r"no such record(.|\n)*a\.tfrecord: record 3"):
        read_record(path, 3)
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*none\.tfrecord"):
        read_record(path.with_name("none.tfrecord"), 0)


def test_a_pipe_is_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tfrecord")
    with pytest.raises(DataError, match=r"not a regular file") as caught:
        read_record(tmp_path / "a.tfrecord", 0)
    assert caught.value.where == tmp_path / "a.tfrecord"


class Failing:
    """A file of which the machine gives nothing."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, position: int) -> None: ...

    def read(self, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_fault_of_the_machine_stays_one_and_damage_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fastssl.sources.tfrecord.open_regular", Failing)
        with pytest.raises(DataError) as caught:
            read_record(path, 0)
    fault = machine_fault(caught.value)
    assert isinstance(fault, OSError)
    assert fault.errno == errno.EIO
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cut short") as caught:
        read_record(path, 2)
    assert machine_fault(caught.value) is None


def flip(position: int) -> Callable[[bytearray], object]:
    def change(data: bytearray) -> None:
        data[position] ^= 0x10

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip(3), "the length of a record is damaged"),
        (flip(9), "the length of a record is damaged"),
        (flip(2000), "the data of a record is damaged"),
        (flip(-1), "the data of a record is damaged"),
        (lambda data: data.__delitem__(slice(-1, None)), "cut short"),
        (lambda data: data.__delitem__(slice(500, None)), "cut short"),
        (lambda data: data.__delitem__(slice(7, None)), "cut short"),
    ],
)
def test_damage_is_an_error_that_names_the_record(
    tmp_path: Path, change: Callable[[bytearray], object], message: str
) -> None:
    write_records(tmp_path / "whole", RECORDS[2])
    whole = (tmp_path / "whole").read_bytes()
    data = bytearray(whole)
    change(data)
    path = tmp_path / "b.tfrecord"
    path.write_bytes(whole + bytes(data))
    assert read_record(path, 0) == RECORDS[2]
    with pytest.raises(DataError, match=message) as caught:
        read_record(path, 1)
    assert caught.value.where == f"{path}: record 1"


def test_features_are_those_that_protocol_buffers_wrote() -> None:
    example = serialised({"words": [b"one", b"", b"three"], "numbers": [0.5, -2.0, 1e10], "counts": [1, -1, 2**40]})
    found = example_features(example, {"words", "numbers", "counts", "others"}, "here")
    assert [bytes(value) for value in found["words"]] == [b"one", b"", b"three"]
    assert np.frombuffer(b"".join(found["numbers"]), "<f4").tolist() == [0.5, -2.0, 1e10]
    assert found["counts"] == []
    assert set(found) == {"words", "numbers", "counts"}
    assert set(example_features(example, {"numbers"}, "here")) == {"numbers"}


@pytest.mark.parametrize("example", [b"\x0a\xff", b"\x0b", b"\xff" * 20, b"\x0a\x06\x0a\x04\x0a\x02\xff\xfe"])
def test_what_is_no_example_is_refused(example: bytes) -> None:
    with pytest.raises(DataError, match=r"not a tf.train.Example(.|\n)*here"):
        example_features(example, {"words"}, "here")


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next two: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, checksum: int) -> None:
    assert masked_crc32c(data) == masked(checksum)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4095, 4096, 4097, 8191, 30011])
def test_checksums_of_any_length_are_those_of_a_loop_over_bytes(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert masked_crc32c(data) == masked(tensorboards_crc32c(data))


def masked(checksum: int) -> int:
    """The mask of TFRecord's format: the sum turned right by 15 bits, plus a constant."""
    bits = f"{checksum:032b}"
    return (int(bits[-15:] + bits[:-15], 2) + 0xA282EAD8) % 2**32
