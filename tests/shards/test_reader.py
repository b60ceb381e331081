from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import re
import shutil
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analytic_rooms import RoomSource, room
from numpy.typing import NDArray

from fastssl.errors import DataError, MachineError, ShardError
from fastssl.faults import machine_fault
from fastssl.shards import CLASS_INDEX, JPEG, TARGETS, ShardSet, decode_sample, descriptors, pack, read_samples, reader
from fastssl.sources.folder import FolderSource


@pytest.fixture
def copy(rooms: Path, tmp_path: Path) -> Path:
    """The packed rooms, to be damaged."""
    return Path(shutil.copytree(rooms, tmp_path / "copy"))


def test_members_are_those_of_the_archives(rooms: Path) -> None:
    shards = ShardSet(rooms)
    assert len(shards) == 7
    assert shards.has_targets
    assert shards.image_size == (32, 32)
    index = 0
    for archive in sorted(rooms.glob("*.tar")):
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                key, extension = member.name.split(".", 1)
                index = int(key.removeprefix("room_"))
                seen = shards.member(index, extension)
                content = tar.extractfile(member)
                assert content is not None
                assert seen.tobytes() == content.read()
                assert (shards.key(index), shards.shard_name(index)) == (key, archive.name)
    assert index == 6
    assert [shards.class_index(i) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def new_memory(num_bytes: int) -> NDArray[np.uint8]:
    return np.empty(num_bytes, np.uint8)


@pytest.mark.parametrize(
    "names",
    [(JPEG, TARGETS, CLASS_INDEX), (JPEG, TARGETS), (CLASS_INDEX, TARGETS, JPEG), (JPEG, CLASS_INDEX), (TARGETS,), ()],
)
def test_a_sample_read_at_once_is_its_members(rooms: Path, names: tuple[str, ...]) -> None:
    shards = ShardSet(rooms)
    asked: list[int] = []

    def room(num_bytes: int) -> NDArray[np.uint8]:
        asked.append(num_bytes)
        return np.full(num_bytes, 77, np.uint8)

    for index in range(len(shards)):
        stored = shards.read(index, names, room)
        assert stored.key == shards.key(index)
        assert stored.class_index == (shards.class_index(index) if CLASS_INDEX in names else -1)
        assert set(stored.members) == set(names)
        for name, content in stored.members.items():
            assert content.tobytes() == shards.member(index, name).tobytes()
        assert len(asked) == index + 1
        assert asked[-1] <= max(shards.most_bytes((JPEG, *names)), 512)


@pytest.mark.parametrize(
    "names",
    [(JPEG, TARGETS, CLASS_INDEX), (JPEG, TARGETS), (CLASS_INDEX, TARGETS, JPEG), (JPEG, CLASS_INDEX), (TARGETS,), ()],
)
def test_many_samples_read_at_once_are_those_read_by_themselves(rooms: Path, names: tuple[str, ...]) -> None:
    shards, indices = ShardSet(rooms), np.array([6, 0, 3, 3, 5, 1, 2, 4])
    memory = np.full(len(indices) * shards.most_bytes((JPEG, *names)), 77, np.uint8)
    found, used = shards.read_many(indices, names, memory)
    assert (memory[used:] == 77).all()
    for index, stored in zip(indices.tolist(), found, strict=True):
        alone = shards.read(index, names, new_memory)
        assert stored is not None
        assert (stored.key, stored.class_index, list(stored.members)) == (
            alone.key,
            alone.class_index,
            list(alone.members),
        )
        for name, content in stored.members.items():
            assert content.tobytes() == alone.members[name].tobytes()
            assert np.shares_memory(content, memory)


def test_of_many_samples_those_that_cannot_be_read_are_left_out(copy: Path) -> None:
    """One behind the end of a shard that was cut short, one for which there is no memory, all where a member is not."""
    shards = ShardSet(copy)
    _, whole = shards.read_many(np.arange(7), (JPEG, TARGETS), np.empty(1 << 20, np.uint8))
    found, _ = shards.read_many(np.arange(7), (JPEG, TARGETS), np.empty(whole - 1, np.uint8))
    assert [stored is None for stored in found] == [False] * 6 + [True]
    first, *_ = sorted(copy.glob("*.tar"))
    os.truncate(first, first.stat().st_size // 2)
    found, _ = shards.read_many(np.arange(7), (JPEG, TARGETS), np.empty(1 << 20, np.uint8))
    of_first = shards.shard_sizes[0]
    assert [stored is None for stored in found[of_first - 1 :]] == [True] + [False] * (7 - of_first)
    assert shards.read_many(np.arange(7), (JPEG, "no"), np.empty(1 << 20, np.uint8)) == ([None] * 7, 0)
    shutil.rmtree(copy)
    assert ShardSet.read_many(shards, np.arange(0), (JPEG,), np.empty(0, np.uint8)) == ([], 0)
    shards.close()
    found, _ = shards.read_many(np.arange(7), (JPEG,), np.empty(1 << 20, np.uint8))
    assert found == [None] * 7


@pytest.mark.parametrize("index", [-1, -7, 7])
def test_a_sample_of_many_that_does_not_exist_is_named(rooms: Path, index: int) -> None:
    """Also one below 0, which NumPy would count from the end."""
    shards, memory = ShardSet(rooms), np.empty(1 << 20, np.uint8)
    with pytest.raises(IndexError, match=f"sample {index} of 7"):
        shards.read_many(np.array([0, index]), (JPEG,), memory)


@pytest.mark.parametrize("text", [b"x", b"-1"])
def test_a_sample_of_many_whose_class_is_no_number_is_left_out(copy: Path, text: bytes) -> None:
    archive = min(copy.glob("*.tar"))
    with tarfile.open(archive) as tar:
        member = next(one for one in tar.getmembers() if one.name.endswith(".cls"))
    content = bytearray(archive.read_bytes())
    content[member.offset_data : member.offset_data + len(text)] = text
    archive.write_bytes(content)
    index = archive.with_suffix(".idx")
    line = index.read_text().replace(f"cls {member.offset_data} 1 ", f"cls {member.offset_data} {len(text)} ")
    index.write_text(line)
    found, _ = ShardSet(copy).read_many(np.arange(7), (JPEG, CLASS_INDEX), np.empty(1 << 20, np.uint8))
    assert [stored is None for stored in found] == [True] + [False] * 6


def test_many_samples_hold_no_more_shards_open_than_a_group(tmp_path: Path) -> None:
    """A hundred shards with the bound of open ones at eight: a quarter more than eight are open at once at most."""
    pack(RoomSource(Path("rooms"), 100), tmp_path / "out", size=32, samples_per_shard=1)
    shards = ShardSet(tmp_path / "out")
    before, most = len([*Path("/proc/self/fd").iterdir()]), 0
    real = reader.ShardSet._open

    def counted(self: ShardSet, shard: int) -> Any:
        nonlocal most
        opened = real(self, shard)
        most = max(most, len([*Path("/proc/self/fd").iterdir()]) - before)
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descriptors.open_shards, "_most", lambda: 8)
        patch.setattr(reader, "most_open", lambda: 8)
        patch.setattr(reader.ShardSet, "_open", counted)
        found, _ = shards.read_many(np.arange(100), (JPEG,), np.empty(1 << 20, np.uint8))
    assert None not in found
    assert most <= 8 + 2


def test_a_sample_read_at_once_without_a_member_is_named(photos: Path, tmp_path: Path) -> None:
    pack(FolderSource(photos), tmp_path / "out", size=32)
    shards = ShardSet(tmp_path / "out")
    assert shards.read(0, (JPEG, CLASS_INDEX), new_memory).class_index == -1
    with pytest.raises(ShardError, match=r"no labels\.lz4") as caught:
        shards.read(1, (JPEG, TARGETS), new_memory)
    assert shards.key(1) in str(caught.value.where)
    with pytest.raises(IndexError):
        shards.read(len(shards), (JPEG,), new_memory)


def test_members_are_views_that_cannot_be_written(rooms: Path) -> None:
    view = ShardSet(rooms).member(0, JPEG)
    assert view.base is not None
    assert not view.flags.writeable
    assert (view.dtype, view.ndim) == (np.uint8, 1)


def test_samples_have_the_units_of_the_batch_contract(rooms: Path) -> None:
    for seed, sample in enumerate(read_samples(rooms)):
        truth = room(seed, 24, 40)
        rows, columns = (((np.arange(32) + 0.5) * side / 32).astype(int) for side in (24, 40))
        depth, normal = truth.depth[rows][:, columns], truth.normal[rows][:, columns]
        assert (sample.key, sample.class_index) == (f"room_{seed:03d}", seed % 3)
        assert (sample.image.dtype, sample.image.shape) == (np.uint8, (32, 32, 3))
        assert (sample.depth.dtype, sample.normal.dtype) == (np.float32, np.float32)
        assert np.abs(sample.depth - depth).max() <= 0.00051
        np.testing.assert_array_equal(sample.valid, depth > 0)
        assert np.abs(sample.normal - normal).max() < 0.01
        assert sample.edge.dtype == bool


def test_a_real_dataset_has_no_targets(photos: Path, tmp_path: Path) -> None:
    pack(FolderSource(photos), tmp_path / "out", size=32)
    shards = ShardSet(tmp_path / "out")
    assert not shards.has_targets
    assert shards.class_index(3) == -1
    sample = decode_sample(shards, 3)
    assert (sample.depth, sample.normal, sample.edge, sample.valid, sample.class_index) == (None,) * 5
    with pytest.raises(ShardError, match=r"no labels\.lz4(.|\n)*000000\.tar: photo-03"):
        shards.member(3, TARGETS)


def test_indices_outside_are_refused(rooms: Path) -> None:
    shards = ShardSet(rooms)
    for index in (-1, 7):
        for call in (shards.key, shards.class_index, shards.shard_name):
            with pytest.raises(IndexError):
                call(index)
        with pytest.raises(IndexError):
            shards.member(index, JPEG)


def test_few_open_files_serve_many_shards(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_MOST_OPEN", 1)
    shards, plain = ShardSet(rooms), list(read_samples(rooms))
    early = shards.member(0, JPEG)
    first = early.tobytes()
    order = [6, 0, 4, 1, 5, 0, 6]
    assert [shards.key(i) for i in order] == [plain[i].key for i in order]
    assert early.tobytes() == first


def test_threads_and_processes_read_the_same(rooms: Path) -> None:
    shards = ShardSet(rooms)
    expected = [sample.image.tobytes() for sample in read_samples(rooms)]
    shards.key(0)  # a shard is open when it is pickled and forked
    with ThreadPoolExecutor(4) as pool:
        samples = pool.map(lambda i: decode_sample(shards, i), range(7))
        assert [sample.image.tobytes() for sample in samples] == expected
    copy = pickle.loads(pickle.dumps(shards))
    assert [decode_sample(copy, i).image.tobytes() for i in range(7)] == expected
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        keys = processes.map(shards.key, range(7))
    assert keys == [shards.key(i) for i in range(7)]


@pytest.mark.parametrize(
    ("keep", "extra", "message"),
    [(1000, b"", "cut short"), (-1, b"", "cut short"), (None, b"\0", "longer"), (0, b"", "short")],
)
def test_a_shard_of_another_length_is_refused(copy: Path, keep: int | None, extra: bytes, message: str) -> None:
    shard = copy / "000001.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:keep] + extra)
    with pytest.raises(ShardError, match=message) as error:
        ShardSet(copy)
    assert error.value.where == shard
    assert error.value.seen == f"{shard.stat().st_size} bytes"
    assert error.value.expected == f"{size} bytes"


def test_a_shard_cut_short_after_opening_is_refused_before_it_is_mapped(copy: Path) -> None:
    shards = ShardSet(copy)
    (copy / "000001.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="cut short"):
        shards.member(3, JPEG)


def test_a_missing_shard_is_refused(copy: Path) -> None:
    (copy / "000002.tar").unlink()
    with pytest.raises(ShardError, match=r"missing(.|\n)*000002\.tar"):
        ShardSet(copy)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("call", ["stat", "open", "manifest", "index", "checksums"])
def test_a_fault_of_the_machine_is_named_as_that(
    copy: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    """No shard is called missing, or its lists unusable, because the file system does not answer."""
    suffix = {"manifest": ".json", "index": ".idx", "checksums": ".crc"}.get(call, ".tar")
    shards = ShardSet(copy)

    name = "stat" if call == "stat" else "open"
    true = getattr(Path, name)

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(suffix):
            raise OSError(number, os.strerror(number), str(path))
        return true(path, *arguments, **options)

    monkeypatch.setattr(Path, name, failing)
    calls = {"open": lambda: shards.key(0), "checksums": lambda: shards.checksum(0, JPEG)}
    with pytest.raises(MachineError) as caught:
        calls.get(call, lambda: ShardSet(copy))()
    assert str(caught.value.where).endswith(suffix)
    assert isinstance(machine_fault(caught.value), OSError)


def test_a_missing_index_is_refused(copy: Path) -> None:
    (copy / "000002.idx").unlink()
    with pytest.raises(DataError, match=r"no index(.|\n)*000002\.idx"):
        ShardSet(copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v1.2 3", "v1.2 4"),
        ("v1.2 3", "v1.1 3"),
        ("jpg 512 ", "jpg 0 "),
        ("jpg 512 ", "jpg 513 "),
        ("jpg 512 ", "jpg 5120000 "),
        ("jpg 512 ", "jpg 99999999999999999999 "),
        ("jpg 512 ", "png 512 "),
        ("jpg 512 ", "jpg many "),
        ("jpg 512 ", "jpg 512 -"),
        ("jpg 512 ", "jpg "),
        ("jpg 512 ", ""),
        (r"jpg 512 \d+ room_000.jpg ", ""),
        (r"labels.lz4 \d+ ", "labels.lz4 512 "),
    ],
)
def test_an_index_that_does_not_fit_its_shard_is_refused(copy: Path, old: str, new: str) -> None:
    index = copy / "000000.idx"
    text = index.read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    index.write_text(changed)
    with pytest.raises(ShardError, match=r"000000\.idx"):
        ShardSet(copy)


def test_memory_is_eight_bytes_a_member_and_one_index_at_a_time(rooms: Path, tmp_path: Path) -> None:
    """100,000 samples in 20 archives with holes, over 4 GiB each; the bytes are closed form."""
    count, shards, apart = 5000, 20, 2**20
    manifest = json.loads((rooms / "manifest.json").read_text())
    entry = {"samples": count, "bytes": count * apart, "sha256": "0" * 64}
    manifest |= {"samples": shards * count, "shards": [{**entry, "name": f"{i:06d}.tar"} for i in range(shards)]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    lines = [f"jpg {i * apart + 512} 3 {i}.jpg labels.lz4 {i * apart + 1536} 9 {i}.labels.lz4" for i in range(count)]
    index = "\n".join([f"v1.2 {count}", *lines, ""])
    for shard in manifest["shards"]:
        with (tmp_path / shard["name"]).open("wb") as file:
            file.truncate(shard["bytes"])
            file.seek(4999 * apart)
            file.write(b"last_one.jpg".ljust(512, b"\0") + b"abc")
        (tmp_path / shard["name"]).with_suffix(".idx").write_text(index)
    ShardSet(rooms)  # what is loaded once
    tracemalloc.start()
    opened = ShardSet(tmp_path)
    (kept, most), numbers = tracemalloc.get_traced_memory(), 8 * len(manifest["members"]) * shards * count
    tracemalloc.stop()
    assert numbers < kept < numbers + 200_000
    assert most < numbers + shards * len(index) / 2
    assert (opened.key(99_999), opened.member(99_999, JPEG).tobytes()) == ("last_one", b"abc")


def test_an_index_with_a_line_more_or_less_is_refused(copy: Path) -> None:
    index = copy / "000000.idx"
    lines = index.read_text().splitlines()
    for wrong in (lines[:-1], [*lines, lines[-1]], []):
        index.write_text("\n".join(wrong))
        with pytest.raises(ShardError, match=r"000000\.idx"):
            ShardSet(copy)


def test_a_sample_without_its_plane_is_named(copy: Path) -> None:
    index = copy / "000001.idx"
    words = index.read_text().split(" ")
    at = words.index(TARGETS)
    index.write_text(" ".join(words[:at] + words[at + 4 :]))
    shards = ShardSet(copy)
    with pytest.raises(ShardError, match=r"no labels\.lz4(.|\n)*000001\.tar: room_003"):
        decode_sample(shards, 3)
    decode_sample(shards, 4)


def damage(folder: Path, index: int, member: str, content: bytes) -> None:
    """Overwrite the start of a member."""
    with tarfile.open(folder / ShardSet(folder).shard_name(index)) as tar:
        position = tar.getmember(f"room_{index:03d}.{member}").offset_data
    with Path(str(tar.name)).open("r+b") as file:
        file.seek(position)
        file.write(content)


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        (JPEG, b"no image", "JPEG is damaged"),
        (JPEG, bytes(10), "JPEG is damaged"),
        (TARGETS, b"\xff" * 200, "target block"),
        (CLASS_INDEX, b"x", "class"),
    ],
)
def test_a_damaged_member_is_named(copy: Path, member: str, content: bytes, message: str) -> None:
    damage(copy, 4, member, content)
    with pytest.raises(ShardError, match=rf"{message}(.|\n)*000001\.tar: room_004"):
        decode_sample(ShardSet(copy), 4)
    decode_sample(ShardSet(copy), 3)


def test_an_image_of_another_size_than_the_manifest_s_is_named(tmp_path: Path, rooms: Path) -> None:
    out = tmp_path / "out"
    pack(RoomSource(tmp_path, 2), out, size=16)
    manifest, other = (json.loads((folder / "manifest.json").read_text()) for folder in (out, rooms))
    manifest.update(height=32, width=32, members=other["members"])
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"wrong size(.|\n)*000000\.tar: room_000"):
        decode_sample(ShardSet(out), 0)
