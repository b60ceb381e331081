"""Damage done to packed shards: survived with the right count, or refused by name; never a crash, never a hang.

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
import numpy as np
import pytest
import torch
from patterns import SIDE
from PIL import Image

from fastssl.batch import SyntheticBatch
from fastssl.config import AugmentConfig, DataConfig
from fastssl.errors import DataError, ShardError
from fastssl.loader import LoaderOptions, Mixture, Share, ViewSettings, open_mixture, real_batches, synthetic_batches
from fastssl.loader.plan import training_plan
from fastssl.shards import ShardSet

pytestmark = pytest.mark.timeout(120)

STEPS, BATCH = 9, 4
Made = tuple[list[SyntheticBatch], list[str]]
DATA = DataConfig(size=67, window=(67 / SIDE, 67 / SIDE), gray="off")


def batches(shards: Mixture, *, steps: int = STEPS, max_bad: int = 100, paranoid: bool = False) -> Made:
    """The first batches of a plan, and what was found damaged meanwhile."""
    share = Share(order=shards.order(seed=4, stream=0), batch_size=BATCH)
    settings = ViewSettings(data=DATA, augment=AugmentConfig(), stored=shards.image_size)
    options = LoaderOptions(device=torch.device("cpu"), threads=2, max_bad=max_bad, paranoid=paranoid)
    made = synthetic_batches(shards, training_plan(settings, share), options)
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
    "another size": ("jpg", lambda stream: jpeg_of(SIDE // 2, len(stream)), False),
    "damaged entropy data": ("jpg", garbled, True),
    "a damaged block": ("labels.lz4", lambda block: b"\xf0" * 64 + block[64:], False),
    "a block of another size": ("labels.lz4", lambda block: lz4.block.compress(bytes(99), store_size=False), False),
    "one bit of a label": ("labels.lz4", lambda block: block[:-1] + bytes([block[-1] ^ 1]), True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damaged", [[6], [5, 6, 10]])
def test_a_damaged_sample_costs_that_sample(
    coded_synthetic: Path, tmp_path: Path, kind: str, damaged: Sequence[int]
) -> None:
    member, change, needs_paranoia = KINDS[kind]
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    for index in damaged:
        overwritten(tmp_path / "damaged", index, member, change)
    undamaged = open_mixture(coded_synthetic)
    expected, _ = batches(undamaged)
    got, found = batches(open_mixture(tmp_path / "damaged"), paranoid=needs_paranoia)
    assert len(got) == STEPS
    keys = [undamaged.key(i) for i in range(len(undamaged))]
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


def test_a_replacement_is_seen_through_the_view_of_the_one_it_replaces(coded_synthetic: Path, tmp_path: Path) -> None:
    """The coded depth names the stored pixel: it is that of the plan's window, whichever sample it is."""
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 6, "jpg", lambda stream: b"")
    (expected, _), (got, _) = batches(open_mixture(coded_synthetic)), batches(open_mixture(tmp_path / "damaged"))
    for batch, sound in zip(got, expected, strict=True):
        assert torch.equal(batch.depth, sound.depth)


@pytest.mark.parametrize("max_bad", [0, 2])
def test_more_damage_than_allowed_ends_the_batches_and_is_named(
    coded_synthetic: Path, tmp_path: Path, max_bad: int
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    for index in (2, 6, 9):
        overwritten(tmp_path / "damaged", index, "jpg", lambda stream: stream[:99])
    with pytest.raises(ShardError, match=r"coded_00[269]") as raised:
        batches(open_mixture(tmp_path / "damaged"), max_bad=max_bad)
    assert ".tar" in str(raised.value)
    assert ("at most 2" in str(raised.value)) == (max_bad == 2)


def test_damage_that_decodes_goes_unnoticed_without_paranoia(coded_synthetic: Path, tmp_path: Path) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 6, "jpg", garbled)
    got, found = batches(open_mixture(tmp_path / "damaged"))
    assert (len(got), found) == (STEPS, [])


WHOLE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-700]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_shard_that_is_not_whole_is_refused_at_the_start(coded_synthetic: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    WHOLE[kind](tmp_path / "damaged" / "000001.tar")
    with pytest.raises(ShardError, match=r"000001\.tar"):
        open_mixture(tmp_path / "damaged")


@pytest.mark.parametrize("change", [b"", b"v1.2 4\n", b"text"])
def test_a_damaged_index_is_refused_at_the_start(coded_synthetic: Path, tmp_path: Path, change: bytes) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    (tmp_path / "damaged" / "000001.idx").write_bytes(change)
    with pytest.raises(DataError, match=r"000001\.idx"):
        open_mixture(tmp_path / "damaged")


def test_a_shard_replaced_by_another_of_its_size_is_noticed_by_its_checksums(
    coded_synthetic: Path, tmp_path: Path
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    path = tmp_path / "damaged" / "000001.tar"
    rng = np.random.default_rng(0)
    path.write_bytes(rng.bytes(path.stat().st_size))
    with pytest.raises(ShardError, match=r"000001\.tar"):
        batches(open_mixture(tmp_path / "damaged"), paranoid=True, max_bad=3)


def test_a_shard_cut_short_while_it_is_read_ends_the_batches_and_not_the_process(
    coded_synthetic: Path, tmp_path: Path
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    shards = open_mixture(tmp_path / "damaged")
    assert len(batches(shards, steps=3)[0]) == 3
    for path in (tmp_path / "damaged").glob("*.tar"):
        with path.open("r+b") as file:
            file.truncate(1000)
    with pytest.raises(ShardError, match="cut short while it was in use"):
        batches(shards, max_bad=3)


def test_a_damaged_class_costs_its_photo(coded_real: Path, tmp_path: Path) -> None:
    shutil.copytree(coded_real, tmp_path / "damaged")
    shards = ShardSet(tmp_path / "damaged")
    archive = tmp_path / "damaged" / shards.shard_name(6)
    packed = bytearray(archive.read_bytes())
    packed[packed.index(b"coded_006.cls") + 512] = ord("x")
    archive.write_bytes(bytes(packed))
    damaged = open_mixture(tmp_path / "damaged")
    share = Share(order=damaged.order(seed=4, stream=1), batch_size=BATCH)
    settings = ViewSettings(data=DATA, augment=AugmentConfig(), stored=damaged.image_size)
    options = LoaderOptions(device=torch.device("cpu"), threads=2, max_bad=1)
    made = real_batches(damaged, training_plan(settings, share), options)
    keys = {key for batch in islice(made, 9) for key in batch.keys}
    assert len(keys) == 8
    assert "coded_006" not in keys
    (place,) = made.damaged()
    assert "a class is not a number" in place
