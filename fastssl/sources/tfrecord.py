"""TFRecord files of `tf.train.Example`, as TensorFlow Datasets writes them, read without TensorFlow.

A file is a sequence of records: each one's length (uint64, little-endian), the masked CRC-32C of that, the data, and
theirs. All checksums are compared.

A record of an example is a message of protocol buffers, of which only what is asked for is taken apart; TFDS stores
optical flow, say, as lists of numbers, which can be most of a record:

    Example { Features features = 1; }, Features { map<string, Feature> feature = 1; },
    Feature { oneof { BytesList = 1; FloatList = 2; Int64List = 3; } }, each list { repeated value = 1; }
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from fastssl.errors import DataError
from fastssl.files import open_regular

_HEADER, _CHECKSUM = 12, 4


def record_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Where the data of each record begin, and how many bytes they are; they themselves are passed over unread.

    Raises:
        DataError: the file is cut short, or the length of a record is damaged; names file and record.
    """
    with _opened(path) as file:
        end, position, record = os.fstat(file.fileno()).st_size, 0, 0
        while position < end:
            file.seek(position)
            header = file.read(_HEADER)
            where = f"{path}: record {record}"
            if len(header) == _HEADER:
                _check(header[:8], header[8:], "length", where)
            length = int.from_bytes(header[:8], "little")
            following = position + _HEADER + length + _CHECKSUM
            if len(header) < _HEADER or following > end:
                seen = f"{end - position} bytes to the end of the file"
                raise DataError("a record is cut short", where=where, seen=seen, hint="fetch the file again")
            yield position + _HEADER, length
            position, record = following, record + 1


def read_record(path: Path, number: int) -> bytes:
    """The data of a record; they are counted from 0.

    Raises:
        DataError: there is no such record, it or the length of one before it is damaged, or the file is cut short.
    """
    where = f"{path}: record {number}"
    extent = next(islice(record_extents(path), number, None), None)
    if extent is None:
        raise DataError("there is no such record", where=where)
    start, length = extent
    with _opened(path) as file:
        file.seek(start)
        data, checksum = file.read(length), file.read(_CHECKSUM)
    _check(data, checksum, "data", where)
    return data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise DataError("a TFRecord file cannot be read", where=path, seen=error.strerror) from error


def _check(data: bytes, checksum: bytes, what: str, where: str) -> None:
    masked = masked_crc32c(data)
    stored = int.from_bytes(checksum, "little")
    if masked != stored:
        raise DataError(
            f"the {what} of a record is damaged",
            where=where,
            seen=f"masked CRC-32C {masked:08x}",
            expected=f"{stored:08x}",
            hint="fetch the file again",
        )


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C of the data as the format stores it: rotated and offset, because data may hold checksums too."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def example_features(example: bytes, names: Collection[str], where: str) -> dict[str, list[memoryview]]:
    """The values of an example's features.

    Args:
        example: what a record holds.
        names: of the features wanted; those that are not there are left out.
        where: what errors name.

    Returns:
        By name: of a list of bytes, each as it is; of a list of float32, chunks of them, little-endian; of integers
        none.

    Raises:
        DataError: it is not a `tf.train.Example`.
    """
    found = {}
    try:
        for features in _messages(memoryview(example), 1):
            for entry in _messages(features, 1):
                name = b"".join(_messages(entry, 1)).decode()
                if name in names:
                    found[name] = [value for feature in _messages(entry, 2) for value in _values(feature)]
    except (ValueError, IndexError) as error:
        raise DataError("a record is not a tf.train.Example", where=where, seen=str(error)) from error
    return found


def _values(feature: memoryview) -> Iterator[memoryview]:
    for kind in (1, 2):
        for values in _messages(feature, kind):
            yield from _messages(values, 1)


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The fields of a message that have this number, as bytes; varints are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            _, position = _varint(message, position)
            continue
        if tag & 7 == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(tag & 7, len(message))
        if position + size > len(message):
            raise ValueError(f"a field of type {tag & 7} and {size} bytes reaches beyond its message")
        if tag >> 3 == number:
            yield message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, least first, and the position after it."""
    value = shift = 0
    while message[position] & 0x80:
        value |= (message[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | message[position] << shift, position + 1
