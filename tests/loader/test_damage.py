"""Damage done to packed shards: survived with the right count, or refused by name; never a crash, never a hang.

The oracle is the same plan on the undamaged dataset: all other samples stay as they are, bit for bit, and a damaged one
is replaced by the next of its dataset.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged import (
    BATCH,
    CPU,
    DATA,
    KINDS,
    PIXEL_KINDS,
    RESIZED,
    STEPS,
    assert_a_failed_batch_is_made_again,
    assert_costs_those_samples,
    batches,
    garbled,
    overwritten,
)
from nvidia.dali.pipeline import Pipeline

from fastssl.config import AugmentConfig, DataConfig
from fastssl.errors import DataError, DeviceError, MachineError, ShardError
from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, load_batches, open_mixture
from fastssl.loader.damage import Damage
from fastssl.loader.memory import Memory
from fastssl.loader.plan import centre_views, endless_plan, evaluation_plan
from fastssl.shards import JPEG, TARGETS, ShardSet
from fastssl.shards.image_codec import JpegImages

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("damaged", "data"), [([6], DATA), ([5, 6, 10], DATA), ([5, 6, 10], RESIZED)])
def test_a_damaged_sample_costs_that_sample(
    coded_synthetic: Path, tmp_path: Path, kind: str, damaged: Sequence[int], data: DataConfig
) -> None:
    paranoid = KINDS[kind][2] and (data is DATA or KINDS[kind][0] != "jpg")
    assert_costs_those_samples(coded_synthetic, tmp_path, kind, damaged, paranoid=paranoid, device=CPU, data=data)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_damaged_pixels_cost_that_sample(coded_pixels: Path, tmp_path: Path, kind: str) -> None:
    paranoid = PIXEL_KINDS[kind][2]
    assert_costs_those_samples(coded_pixels, tmp_path, kind, [5, 6, 10], paranoid=paranoid, device=CPU)


def test_damaged_pixels_end_the_batches_with_an_error_that_names_them(coded_pixels: Path, tmp_path: Path) -> None:
    shutil.copytree(coded_pixels, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 6, *PIXEL_KINDS["pixels: a damaged block"][:2])
    with pytest.raises(ShardError, match="an image is damaged") as raised:
        batches(open_mixture(tmp_path / "damaged"), max_bad=0)
    assert str(raised.value.where).endswith("000001.tar: coded_006")


@pytest.mark.parametrize("data", [DATA, RESIZED])
@pytest.mark.parametrize("damaged", [[6], [5, 6, 10]])
def test_a_batch_that_fails_is_made_again(
    coded_synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: Sequence[int], data: DataConfig
) -> None:
    assert_a_failed_batch_is_made_again(coded_synthetic, tmp_path, damaged, monkeypatch, CPU, data)


@pytest.mark.parametrize("data", [DATA, RESIZED])
@pytest.mark.parametrize("kind", ["no tables", "a damaged block"])
def test_a_damaged_sample_of_two_batches_that_are_under_way_is_replaced_in_both(
    coded_synthetic: Path, tmp_path: Path, kind: str, data: DataConfig
) -> None:
    """The second was read before the first found it damaged."""
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    member, change, _ = KINDS[kind]
    overwritten(tmp_path / "damaged", 6, member, change)
    damaged = open_mixture(tmp_path / "damaged")
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=damaged.image_size)
    plan = evaluation_plan(settings, len(damaged), 2)
    batches = map(np.array, ([5, 6], [6, 9], [6, 7]))
    steps = iter([(samples, centre_views(settings, samples)) for samples in batches])
    options = LoaderOptions(device=CPU, threads=2, max_bad=1)
    made = load_batches(damaged, replace(plan, steps=steps), options)
    assert [batch.keys for batch in made] == [(f"coded_{a:03d}", f"coded_{b:03d}") for a, b in ((5, 7), (7, 9), (7, 7))]
    assert len(made.damaged()) == 1


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


@pytest.mark.parametrize(("data", "reason"), [(DATA, "bad Huffman code"), (RESIZED, "jpg is not as it was packed")])
def test_damage_inside_a_jpeg_is_noticed_whoever_decodes_it(
    coded_synthetic: Path, tmp_path: Path, data: DataConfig, reason: str
) -> None:
    """The decoder of windows that are only cut out tells of it; DALI makes pixels of it, so checksums are compared."""
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 6, "jpg", garbled)
    got, found = batches(open_mixture(tmp_path / "damaged"), data=data)
    assert len(got) == STEPS
    assert len(found) == 1
    assert reason in found[0]


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
    rank_slice = RankSlice(order=damaged.order(seed=4, stream=1), batch_size=BATCH)
    settings = ViewSettings(data=DATA, augment=AugmentConfig(), stored=damaged.image_size)
    options = LoaderOptions(device=torch.device("cpu"), threads=2, max_bad=1)
    made = load_batches(damaged, endless_plan(settings, rank_slice), options, ("class_index",))
    keys = {key for batch in islice(made, 9) for key in batch.keys}
    assert len(keys) == 8
    assert "coded_006" not in keys
    (place,) = made.damaged()
    assert "a class is not a number" in place


def test_only_the_members_that_are_to_be_checked_are_compared(coded_synthetic: Path, tmp_path: Path) -> None:
    """Damage in another member that decodes goes unnoticed."""
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 2, "jpg", garbled)
    overwritten(tmp_path / "damaged", 6, TARGETS, lambda block: block[:-1] + bytes([block[-1] ^ 1]))
    for checked, damaged in ((), []), ((TARGETS,), [6]), ((JPEG,), [2]), ((JPEG, TARGETS), [2, 6]):
        damage = Damage(open_mixture(tmp_path / "damaged"), (JPEG, TARGETS), max_bad=9, checked=checked)
        read = damage.read(range(11))
        assert list(damage.found) == damaged
        assert [index for index, _ in read] == [index + (index in damaged) for index in range(11)]


def test_memory_is_lent_again_only_when_no_member_is_left(coded_synthetic: Path) -> None:
    damage = Damage(open_mixture(coded_synthetic), (JPEG, TARGETS), max_bad=0)
    shards = ShardSet(coded_synthetic)
    member = damage.read([3, 4])[0][1].members[TARGETS]
    place = member.ctypes.data
    seen = [stored.members[TARGETS].ctypes.data for _ in range(5) for _, stored in damage.read([5, 6])]
    assert place not in seen
    assert member.tobytes() == shards.member(3, TARGETS).tobytes()
    del member
    assert any(stored.members[TARGETS].ctypes.data == place for _ in range(3) for _, stored in damage.read([3]))


def test_a_batch_that_fails_without_damage_is_nobody_s_sample(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(pipeline: Pipeline, stream: Any = None) -> None:
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(Pipeline, "outputs", fails)
    with pytest.raises(DeviceError, match=r"DALI could not make a batch(.|\n)*no memory is left"):
        batches(open_mixture(coded_synthetic), data=RESIZED)


def test_a_dataset_without_a_sound_sample_ends_the_batches(coded_synthetic: Path, tmp_path: Path) -> None:
    """It has fewer samples than may be damaged, so nothing else would end the search for a sound one."""
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    samples = open_mixture(tmp_path / "damaged")
    for index in range(len(samples)):
        overwritten(tmp_path / "damaged", index, "jpg", lambda stream: b"")
    with pytest.raises(ShardError, match=r"every sample of the dataset is damaged(.|\n)*\.tar"):
        Damage(samples, (JPEG,), max_bad=100).read([3])


def test_missing_checksums_are_no_fault_of_a_sample(coded_synthetic: Path, tmp_path: Path) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "rooms")
    for path in (tmp_path / "rooms").glob("*.crc"):
        path.unlink()
    damage = Damage(open_mixture(tmp_path / "rooms"), (JPEG,), max_bad=100, checked=(JPEG,))
    with pytest.raises(DataError, match=r"checksums(.|\n)*\.crc(.|\n)*hint: copy the dataset again"):
        damage.read([0])
    assert not damage.found


@pytest.mark.parametrize("stage", ["build", "outputs"])
@pytest.mark.parametrize(
    "error", [MemoryError("std::bad_alloc"), RuntimeError("CUDA allocation failed: out of memory")]
)
def test_memory_that_is_short_is_the_machine_s_fault(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    """And no sample is examined for it."""

    def fails(pipeline: Pipeline, stream: Any = None) -> None:
        raise error

    monkeypatch.setattr(Pipeline, stage, fails)
    monkeypatch.setattr(Damage, "examine", lambda damage, samples: pytest.fail("samples are examined"))
    with pytest.raises(MachineError, match="out of memory"):
        batches(open_mixture(coded_synthetic), data=RESIZED)


@pytest.mark.parametrize(("owner", "place"), [(JpegImages, "decode_windows"), (Memory, "lend")])
def test_memory_that_is_short_where_there_is_no_graph_is_the_machine_s_fault_too(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch, owner: type, place: str
) -> None:
    """In a thread that decodes, and where a batch is begun."""

    def fails(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(owner, place, fails)
    monkeypatch.setattr(Damage, "examine", lambda damage, samples: pytest.fail("samples are examined"))
    with pytest.raises(MachineError, match="out of memory"):
        batches(open_mixture(coded_synthetic))


def test_a_batch_that_fails_though_each_of_its_samples_is_sound_names_them(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no graph; as where memory gives other bytes the next time."""

    def fails(codec: JpegImages, *arguments: Any) -> None:
        raise ShardError("a JPEG is damaged", seen="a bit")

    monkeypatch.setattr(JpegImages, "decode_windows", fails)
    with pytest.raises(ShardError, match="none of its samples does: a JPEG is damaged") as raised:
        batches(open_mixture(coded_synthetic))
    assert "coded_0" in str(raised.value.where)
    assert raised.value.seen == "a bit"


def test_a_pipeline_that_cannot_be_built_is_the_device_s_fault(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(pipeline: Pipeline) -> None:
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(Pipeline, "build", fails)
    with pytest.raises(DeviceError, match=r"could not begin(.|\n)*driver version is insufficient"):
        batches(open_mixture(coded_synthetic), data=RESIZED)
