"""Packed samples as arrays, with neither torch nor DALI."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any

from fastssl.batch import Sample
from fastssl.errors import ShardError
from fastssl.shards.codec import decode_targets
from fastssl.shards.reader import ShardSet

_AHEAD = 3
"""Shards that `read_samples` announces, the one that is being read included."""


def read_samples(path: str | PathLike[str]) -> Iterator[Sample]:
    """All samples of a packed dataset as arrays, in order; needs neither torch nor DALI.

    Raises:
        DataError, ShardError: as `ShardSet` and `decode_sample`.
    """
    return _in_order(ShardSet(path))


def _in_order(shards: ShardSet) -> Iterator[Sample]:
    first = 0
    for number, count in enumerate(shards.shard_sizes):
        shards.prefetch(range(number, min(number + _AHEAD, len(shards.shard_sizes))))
        yield from (decode_sample(shards, index) for index in range(first, first + count))
        first += count


def decode_sample(shards: ShardSet, index: int) -> Sample:
    """One sample as arrays.

    Raises:
        ShardError: a member is missing or damaged; the error names shard and key.
    """
    try:
        return _decoded(shards, index)
    except ShardError as error:
        where = error.where or shards.place(index)
        raise ShardError(error.what, where=where, seen=error.seen, expected=error.expected) from error


def _decoded(shards: ShardSet, index: int) -> Sample:
    codec = shards.image_codec
    image = codec.decode(shards.member(index, codec.member), shards.image_size)
    class_index = shards.class_index(index)
    sample: dict[str, Any] = {
        "key": shards.key(index),
        "image": image,
        "class_index": None if class_index < 0 else class_index,
    }
    if shards.has_targets:
        block = shards.member(index, shards.target_member)
        planes = decode_targets(block, *shards.image_size, shards.target_codec)
        sample.update(zip(("depth", "normal", "edge", "valid"), planes, strict=True))
    return Sample(**sample)
