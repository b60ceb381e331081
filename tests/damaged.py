"""Damage done to packed shards, and what loading them must then give, on any device.

The oracle is the same plan on the undamaged dataset: all other samples stay as they are, bit for bit, and a damaged one
is replaced by the next of its dataset.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import lz4.block
import pytest
import torch
from patterns import SIDE
from PIL import Image

from fastssl.batch import Batch
from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import (
    LoaderOptions,
    Maker,
    Mixture,
    RankSlice,
    ViewSettings,
    iterator,
    load_batches,
    open_mixture,
)
from fastssl.loader.damage import Damage
from fastssl.loader.plan import endless_plan
from fastssl.shards import ShardSet

CPU = torch.device("cpu")
STEPS, BATCH = 9, 4
Made = tuple[list[Batch], list[str]]
DATA = DataConfig(size=67, window=(67 / SIDE, 67 / SIDE), gray="off")
"""Windows are only cut out, so that on a CPU no graph decodes them."""
RESIZED = DataConfig(size=67, window=(0.6, 1.0), gray="off")


def batches(
    shards: Mixture,
    *,
    steps: int = STEPS,
    max_bad: int = 100,
    paranoid: bool = False,
    device: torch.device = CPU,
    data: DataConfig = DATA,
    load_on: Maker = "cpu",
) -> Made:
    """The first batches of a plan, and what was found damaged meanwhile."""
    rank_slice = RankSlice(order=shards.order(seed=4, stream=0), batch_size=BATCH)
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=shards.image_size)
    options = LoaderOptions(device=device, load_on=load_on, threads=2, max_bad=max_bad, paranoid=paranoid)
    made = load_batches(shards, endless_plan(settings, rank_slice), options)
    got = list(islice(made, steps))
    return got, made.damaged()


def overwritten(folder: Path, index: int, member: str, content: Callable[[bytes], bytes]) -> None:
    """Change a member in its archive; its size stays."""
    shards = ShardSet(folder)
    archive = folder / shards.shard_name(index)
    before = shards.member(index, member).tobytes()
    after = content(before)[: len(before)].ljust(len(before), b"\0")
    packed = archive.read_bytes()
    at = packed.index(before)
    archive.write_bytes(packed[:at] + after + packed[at + len(before) :])


def jpeg_of(side: int, length: int) -> bytes:
    """A sound JPEG of another size, its comment as long as it takes."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG")
    stream = buffer.getvalue()
    fill = length - len(stream) - 4
    return stream[:2] + b"\xff\xfe" + (fill + 2).to_bytes(2, "big") + bytes(fill) + stream[2:]


def garbled(stream: bytes) -> bytes:
    """Damage in the entropy-coded data, which decodes to other pixels."""
    middle = len(stream) // 2
    return (
        stream[:middle]
        + bytes(byte ^ 0x55 if byte not in (0xFF, 0xAA) else byte for byte in stream[middle : middle + 40])
        + stream[middle + 40 :]
    )


def without_tables(stream: bytes) -> bytes:
    """The quantisation tables become comments: a sound header, and nothing that a decoder could decode with."""
    return stream.replace(b"\xff\xdb", b"\xff\xfe")


def of_another_table(stream: bytes) -> bytes:
    """The first component is said to have a quantisation table that is not there: a sound header, and no pixels.

    Without any table an image is damaged as well, but nvJPEG then takes those of the image that it parsed before, and
    says nothing; checksums find that. A table of this number no image here has.
    """
    place = stream.index(b"\xff\xc0") + 12
    return stream[:place] + b"\x03" + stream[place + 1 :]


KINDS: dict[str, tuple[str, Callable[[bytes], bytes], bool]] = {
    "cut at a tenth": ("jpg", lambda stream: stream[: len(stream) // 10], False),
    "cut at a half": ("jpg", lambda stream: stream[: len(stream) // 2], False),
    "cut, an end put to it": (
        "jpg",
        lambda stream: stream[: len(stream) // 2].ljust(len(stream) - 2, b"\0") + b"\xff\xd9",
        True,
    ),
    "zeros": ("jpg", lambda stream: b"", False),
    "text": ("jpg", lambda stream: b"not an image " * 999, False),
    "a damaged header": ("jpg", lambda stream: b"\xff\xd8\xff\xdb" + bytes(400) + stream[404:], False),
    "no tables": ("jpg", without_tables, False),
    "another table": ("jpg", of_another_table, False),
    "a smaller image": ("jpg", lambda stream: jpeg_of(SIDE // 2, len(stream)), False),
    "a larger image": ("jpg", lambda stream: jpeg_of(SIDE + 9, len(stream)), False),
    "damaged entropy data": ("jpg", garbled, True),
    "a damaged block": ("labels.lz4", lambda block: b"\xf0" * 64 + block[64:], False),
    "a block of another size": ("labels.lz4", lambda block: lz4.block.compress(bytes(99), store_size=False), False),
    "one bit of a label": ("labels.lz4", lambda block: block[:-1] + bytes([block[-1] ^ 1]), True),
}

PIXEL_KINDS: dict[str, tuple[str, Callable[[bytes], bytes], bool]] = {
    "pixels: zeros": ("image.lz4", lambda member: b"", False),
    "pixels: a damaged block": ("image.lz4", lambda member: member[:4] + b"\xf0" * 64 + member[68:], False),
    "pixels: cut at a half": ("image.lz4", lambda member: member[: len(member) // 2], False),
    "pixels: another size": ("image.lz4", lambda member: b"\x40\0\x00\x01" + member[4:], False),
    "pixels: one bit": ("image.lz4", lambda member: member[:-1] + bytes([member[-1] ^ 1]), True),
}
"""Damage of images that are no JPEGs."""


def assert_costs_those_samples(
    sound_shards: Path,
    tmp_path: Path,
    kind: str,
    damaged: Sequence[int],
    *,
    paranoid: bool,
    device: torch.device,
    data: DataConfig = DATA,
    load_on: Maker = "cpu",
) -> None:
    """Damage some samples, load both datasets and compare them."""
    member, change, _ = (KINDS | PIXEL_KINDS)[kind]
    shutil.copytree(sound_shards, tmp_path / "damaged")
    for index in damaged:
        overwritten(tmp_path / "damaged", index, member, change)
    undamaged = open_mixture(sound_shards)
    expected, _ = batches(undamaged, device=device, data=data, load_on=load_on)
    damaged_shards = open_mixture(tmp_path / "damaged")
    got, found = batches(damaged_shards, paranoid=paranoid, device=device, data=data, load_on=load_on)
    assert len(got) == STEPS
    keys = [undamaged.datasets[0].key(i) for i in range(len(undamaged))]
    for index in damaged:
        assert sum(f"{keys[index]}: " in place for place in found) == 1
    assert len(found) == len(damaged)
    replaced = 0
    for batch, sound in zip(got, expected, strict=True):
        for i, key in enumerate(sound.keys):
            index = keys.index(key)
            if index not in damaged:
                assert batch.keys[i] == key
                for plane in ("image", "depth", "normal", "edge", "valid"):
                    assert torch.equal(getattr(batch, plane)[i], getattr(sound, plane)[i])
                continue
            while index in damaged:
                index = (index + 1) % len(keys)
            assert batch.keys[i] == keys[index]
            replaced += 1
    assert replaced >= 3 * len(damaged) - 1


def assert_a_failed_batch_is_made_again(
    sound_shards: Path,
    tmp_path: Path,
    damaged: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    data: DataConfig = DATA,
    load_on: Maker = "cpu",
) -> None:
    """Damage that only decoding finds, on a GPU too: the batches after it are the plan's, without any checksum."""
    examined = []
    examine = Damage.examine

    def noted(damage: Damage, indices: Sequence[int]) -> bool:
        examined.append(indices)
        return examine(damage, indices)

    monkeypatch.setattr(Damage, "examine", noted)
    monkeypatch.setattr(iterator, "checked_members", lambda members, options: ())
    monkeypatch.setattr(Damage, "compare", lambda damage, member: None)
    assert_costs_those_samples(
        sound_shards, tmp_path, "another table", damaged, paranoid=False, device=device, data=data, load_on=load_on
    )
    assert examined
