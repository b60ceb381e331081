"""Packed samples as arrays, decoded with Pillow and NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import Sample
from fastssl.errors import ShardError
from fastssl.shards.codec import decode_targets
from fastssl.shards.manifest import JPEG
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
    """One sample as arrays, decoded with Pillow and NumPy.

    Raises:
        ShardError: a member is missing or damaged; the error names shard and key.
    """
    image = _decode_jpeg(shards, index)
    class_index = shards.class_index(index)
    sample: dict[str, Any] = {
        "key": shards.key(index),
        "image": image,
        "class_index": None if class_index < 0 else class_index,
    }
    if shards.has_targets:
        try:
            block = shards.member(index, shards.target_member)
            planes = decode_targets(block, *shards.image_size, shards.target_codec)
        except ShardError as error:
            where = error.where or shards.place(index)
            raise ShardError(error.what, where=where, seen=error.seen, expected=error.expected) from error
        sample.update(zip(("depth", "normal", "edge", "valid"), planes, strict=True))
    return Sample(**sample)


def _decode_jpeg(shards: ShardSet, index: int) -> NDArray[np.uint8]:
    try:
        with Image.open(BytesIO(shards.member(index, JPEG).data), formats=["JPEG"]) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise ShardError("a JPEG is damaged", where=shards.place(index), seen=str(error)) from error
    expected = (*shards.image_size, 3)
    if pixels.shape != expected:
        raise ShardError("a JPEG has the wrong size", where=shards.place(index), seen=pixels.shape, expected=expected)
    return pixels
