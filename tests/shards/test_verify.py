"""Damage of every kind, by hand and at random, against `tarfile` and `json` as witnesses of what was damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import boto3
import lz4.block
import numpy as np
import pytest
from analytic_rooms import RoomSource
from faulty_store import FaultyStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastssl.batch import Record
from fastssl.errors import DataError, MachineError
from fastssl.shards import DomainName, fetch, pack, read_samples
from fastssl.shards.codec import TargetLayout, encode_targets
from fastssl.shards.proof import LISTED
from fastssl.shards.split import key_place
from fastssl.shards.verify import Fault, verify

Members = list[tuple[str, bytes]]
"""Names and contents of an archive's files."""

# Fields of the manifest whose values nothing else in a dataset implies.
FREE = {"layout", "source", "licence", "versions", "settings.lz4_level", "settings.selection", "statistics.camera"}


class Photos:
    """Gray squares of one brightness each, of which some cannot be read."""

    layout, licence, subset, path, labelled = "photos", "CC0-1.0", None, Path("photos"), False
    domain: DomainName = "real"

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def references(self) -> Iterator[str]:
        return map(str, range(self.count))

    def key(self, reference: str) -> str:
        return f"photo-{int(reference):03d}"

    def read(self, reference: str) -> Record:
        number = int(reference)
        if number in self.bad:
            raise DataError("an image is damaged", where=reference, seen="émpty")
        return Record(key=self.key(reference), image=np.full((16, 16, 3), number % 256, np.uint8))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Labelled samples with classes and one quarantined; photos without classes and with two quarantined."""
    folder = tmp_path_factory.mktemp("verified")
    rooms = RoomSource(Path("rooms"), 7, trouble="bad", at=5)
    pack(rooms, folder / "rooms", size=24, samples_per_shard=3, max_bad=1)
    pack(Photos(8, bad=(2, 3)), folder / "photos", size=16, samples_per_shard=2, max_bad=2)
    return {"rooms": folder / "rooms", "photos": folder / "photos"}


@pytest.fixture
def copy(packed: dict[str, Path], tmp_path: Path) -> Path:
    """The packed rooms, to be damaged."""
    return Path(shutil.copytree(packed["rooms"], tmp_path / "copy"))


def faults(folder: Path | str) -> list[Fault]:
    return verify(folder).faults


def the_fault(folder: Path) -> Fault:
    (fault,) = faults(folder)
    return fault


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """In the form in which it was written."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def members(archive: Path) -> Members:
    content = archive.read_bytes()
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        return [(one.name, content[one.offset_data : one.offset_data + one.size]) for one in tar.getmembers()]


def write_shard(folder: Path, name: str, files: Members) -> None:
    """An archive of these files as if it had been packed so: with its index, its checksums and its hash."""
    archive, index, checksums = b"", list[str](), list[str]()
    for _, sample in groupby(files, key=lambda file: file[0].partition(".")[0]):
        words, sums = list[str](), list[str]()
        for member, content in sample:
            header = tarfile.TarInfo(member)
            header.size = len(content)
            archive += header.tobuf(tarfile.USTAR_FORMAT)
            words.append(f"{member.partition('.')[2]} {len(archive)} {len(content)} {member}")
            sums.append(f"{zlib.crc32(content):08x}")
            archive += content + bytes(-len(content) % 512)
        index.append(" ".join(words))
        checksums.append(" ".join(sums))
    archive += bytes(1024)
    (folder / f"{name}.tar").write_bytes(archive)
    (folder / f"{name}.idx").write_text("\n".join([f"v1.2 {len(index)}", *index, ""]))
    (folder / f"{name}.crc").write_text("\n".join([f"crc32 {len(index)}", *checksums, ""]))

    def sign(manifest: dict[str, Any]) -> None:
        (entry,) = (entry for entry in manifest["shards"] if entry["name"] == f"{name}.tar")
        entry.update(bytes=len(archive), sha256=hashlib.sha256(archive).hexdigest(), samples=len(index))
        manifest["samples"] = sum(entry["samples"] for entry in manifest["shards"])

    change_manifest(folder, sign)


# What is whole


@pytest.mark.parametrize("name", ["rooms", "photos"])
def test_a_packed_dataset_has_no_fault(packed: dict[str, Path], name: str) -> None:
    seen = list[tuple[int, int]]()
    report = verify(packed[name], progress=lambda done, total: seen.append((done, total)))
    assert (report.faults, report.unlisted, report.num_faults) == ([], {}, 0)
    archives = list(packed[name].glob("*.tar"))
    assert (report.samples, report.shards) == (6, 3)
    assert report.num_bytes == sum(archive.stat().st_size for archive in archives)
    assert seen == {"rooms": [(3, 6), (5, 6), (6, 6)], "photos": [(2, 6), (4, 6), (6, 6)]}[name]


def test_workers_find_the_same(copy: Path) -> None:
    for number in range(3):
        archive = copy / f"{number:06d}.tar"
        archive.write_bytes(flipped(archive.read_bytes(), 700 + number, 1))
    (copy / "000001.idx").unlink()
    alone = verify(copy)
    assert alone.num_faults > 6
    assert verify(copy, workers=2) == alone


def test_the_parts_of_a_dataset_have_no_fault(tmp_path: Path) -> None:
    for name, part in (("train", (0.0, 0.7)), ("val", (0.7, 1.0))):
        pack(Photos(20), tmp_path / name, size=16, samples_per_shard=3, part=part, limit=11)
        assert faults(tmp_path / name) == []


def test_the_shard_writer_of_these_tests_writes_what_pack_does(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for archive in copy.glob("*.tar"):
        write_shard(copy, archive.stem, members(archive))
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


# Other places than a folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_is_checked_as_it_is(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """The same faults as in the folder that it serves, although a cache holds whole copies of the shards."""
    with FaultyStore(copy) as store:
        monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "cache"))
        assert len(list(read_samples(store.address))) == 6
        assert verify(store.address, workers=workers).faults == []
        for number in range(2):
            archive = copy / f"{number:06d}.tar"
            archive.write_bytes(flipped(archive.read_bytes(), 700 + number, 1))
        (copy / "000002.tar").unlink()
        (copy / "000001.idx").unlink()
        (copy / "000000.crc").write_bytes(b"")
        (copy / "quarantine.jsonl").unlink()
        local, remote = verify(copy), verify(store.address, workers=workers)
    assert local.num_faults > 6
    assert (remote.faults, remote.samples, remote.num_bytes) == (local.faults, local.samples, local.num_bytes)


@pytest.mark.parametrize(("extra", "what"), [(1000, "longer than it was packed"), (1 << 25, "cannot be read")])
def test_a_longer_archive_of_a_store_is_found(copy: Path, extra: int, what: str) -> None:
    archive = copy / "000001.tar"
    archive.write_bytes(archive.read_bytes() + bytes(extra))
    with FaultyStore(copy) as store:
        assert any(fault.file == "000001.tar" and what in fault.what for fault in verify(store.address).faults)


def test_a_store_that_cannot_list_says_so(copy: Path, bucket: str) -> None:
    for path in copy.iterdir():
        boto3.client("s3").upload_file(str(path), bucket.removeprefix("s3://"), f"rooms/{path.name}")
    whole = verify(f"{bucket}/rooms")
    assert (whole.faults, whole.names_checked) == ([], True)
    (copy / "notes.txt").write_text("")
    boto3.client("s3").upload_file(str(copy / "notes.txt"), bucket.removeprefix("s3://"), "rooms/notes.txt")
    assert [fault.file for fault in faults(f"{bucket}/rooms")] == ["notes.txt"]
    assert [fault.file for fault in faults(f"file://{copy}")] == ["notes.txt"]
    with FaultyStore(copy) as store:
        report = verify(store.address)
    assert (report.faults, report.names_checked) == ([], False)


def test_a_store_that_does_not_answer_is_no_fault_of_the_dataset(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.001)
    for name in ("000001.tar", "000001.idx", "quarantine.jsonl"):
        with FaultyStore(copy) as store:
            store.faults[f"GET {name}"] = repeat("500")
            with pytest.raises(DataError, match=rf"could not be fetched(.|\n)*{name}"):
                verify(store.address)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("name", ["000001.tar", "000001.idx", "000002.crc", "manifest.json", "quarantine.jsonl"])
def test_a_fault_of_the_machine_is_no_fault_of_the_dataset(
    copy: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    true = Path.open

    def fails(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return true(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(MachineError, match=re.escape(name)):
        verify(copy)


def test_an_archive_that_cannot_be_read_to_its_end_is_no_fault_of_the_dataset(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

        def fileno(self) -> int:
            return file.fileno()

    true, whole = Path.open, (copy / "000000.tar").read_bytes()
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *arguments, **options: (
            Failing(whole) if path.suffix == ".tar" else true(path, *arguments, **options)
        ),
    )
    with true(copy / "000000.tar", "rb") as file, pytest.raises(MachineError, match=r"000000\.tar"):
        verify(copy)


def test_a_file_that_is_a_folder_is_a_fault_of_the_dataset(copy: Path) -> None:
    for name in ("000001.tar", "000000.idx"):
        (copy / name).unlink()
        (copy / name).mkdir()
    assert {fault.file for fault in faults(copy) if "cannot be read" in fault.what} == {"000001.tar", "000000.idx"}


# Damage at random


@pytest.fixture(scope="module")
def damaged(packed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for damages that are mended again."""
    return Path(shutil.copytree(packed["rooms"], tmp_path_factory.mktemp("damaged") / "rooms"))


def pieces(archive: bytes) -> Iterator[tuple[int, int, str | None, str | None]]:
    """First and last byte, key and extension: of each member with its header and padding, and of the archive's end."""
    stop = 0
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        for info in tar.getmembers():
            stop = info.offset_data + -(-info.size // 512) * 512
            key, extension = info.name.split(".", 1)
            yield info.offset, stop, key, extension
    yield stop, len(archive), None, None


def flipped(content: bytes, at: int, bits: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_flipped_byte_of_an_archive_is_found_and_placed(damaged: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(damaged.glob("*.tar"))))
    whole = path.read_bytes()
    start, stop, key, extension = data.draw(st.sampled_from(list(pieces(whole))))
    at = data.draw(st.integers(start, stop - 1))
    path.write_bytes(flipped(whole, at, data.draw(st.integers(1, 255))))
    found = faults(damaged)
    path.write_bytes(whole)
    assert {fault.file for fault in found} == {path.name}
    assert {fault.key for fault in found} <= {key, None}
    assert {fault.member for fault in found} <= {extension, None}
    assert any(
        (fault.key, fault.member) == (key, extension) and fault.span is not None and fault.span[0] <= at < fault.span[1]
        for fault in found
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_flipped_byte_beside_an_archive_is_found_and_placed(damaged: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([*sorted(damaged.glob("*.idx")), *sorted(damaged.glob("*.crc"))]))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(flipped(whole, at, data.draw(st.integers(1, 255))))
    found = faults(damaged)
    path.write_bytes(whole)
    with tarfile.open(path.with_suffix(".tar")) as tar:
        keys = [None, *dict.fromkeys(name.split(".")[0] for name in tar.getnames())]
    (fault,) = found
    assert (fault.file, fault.span) == (path.name, (at, at + 1))
    assert fault.key == keys[whole.count(b"\n", 0, at)]


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """Every value of a JSON document by the dotted path to it."""
    if not isinstance(values, dict | list):
        return {path: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    inner: dict[str, Any] = {}
    for name, value in items:
        inner |= leaves(value, f"{path}.{name}" if path else str(name))
    return inner


def is_free(field: str) -> bool:
    return field.endswith(".meaning") or any(field == name or field.startswith(f"{name}.") for name in FREE)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_flipped_byte_of_the_manifest_is_found_but_in_free_fields(damaged: Path, data: st.DataObject) -> None:
    path = damaged / "manifest.json"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(flipped(whole, at, data.draw(st.integers(1, 255))))
    try:
        found = faults(damaged)
        before, after = leaves(json.loads(whole)), leaves(json.loads(path.read_bytes()))
    except DataError:
        return  # it is not valid
    finally:
        path.write_bytes(whole)
    changed = {field for field in before.keys() | after.keys() if before.get(field) != after.get(field)}
    assert found or all(is_free(field) for field in changed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_flipped_byte_of_the_quarantine_list_is_found_but_in_its_words(damaged: Path, data: st.DataObject) -> None:
    path = damaged / "quarantine.jsonl"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(flipped(whole, at, data.draw(st.integers(1, 255))))
    found, content = faults(damaged), path.read_bytes()
    path.write_bytes(whole)
    assert {fault.file for fault in found} <= {path.name}
    if not found:
        before, after = json.loads(whole), json.loads(content)
        assert before.keys() == after.keys()
        assert sum(before[name] != after[name] for name in before) == 1


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_cut_short_anywhere_is_found(damaged: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(damaged.iterdir())))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        found = faults(damaged)
    except DataError:
        assert path.name == "manifest.json"
    else:
        assert {fault.file for fault in found} == {path.name}
    finally:
        path.write_bytes(whole)


# Damage by hand: files


def test_files_that_are_missing_or_empty_are_named(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        if path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        path.unlink()
        missing = the_fault(copy)
        assert (missing.file, missing.what) == (path.name, "the file is missing")
        path.touch()
        assert {fault.file for fault in faults(copy)} == {path.name}
        path.unlink()
        path.mkdir()
        assert "cannot be read" in the_fault(copy).what
        assert the_fault(copy).file == path.name
        path.rmdir()
        path.write_bytes(whole)
    assert faults(copy) == []


def test_a_folder_without_a_usable_manifest_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        verify(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="no manifest"):
        verify(copy)
    with pytest.raises(DataError, match="no such folder"):
        verify(tmp_path / "nowhere")


def test_files_that_nobody_promised_are_named_as_what_they_are(copy: Path) -> None:
    (copy / ".packing").mkdir()
    (copy / "000003.tar.partial").touch()
    (copy / "000003.tar").touch()
    assert [(fault.file, fault.what) for fault in faults(copy)] == [
        (".packing", "the state of a packing that was interrupted was left behind"),
        ("000003.tar", "the manifest promises no such file"),
        ("000003.tar.partial", "what a killed process was writing was left behind"),
    ]


def test_swapped_shards_are_recognised(copy: Path) -> None:
    one, other = copy / "000000.tar", copy / "000001.tar"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    found = faults(copy)
    assert [(fault.file, fault.seen) for fault in found] == [("000000.tar", "000001.tar"), ("000001.tar", "000000.tar")]
    assert {fault.what for fault in found} == {"the file is another shard of the dataset"}


@pytest.mark.parametrize("suffix", [".idx", ".crc"])
def test_swapped_companions_do_not_describe_their_archives(copy: Path, suffix: str) -> None:
    one, other = copy / f"000000{suffix}", copy / f"000001{suffix}"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    found = faults(copy)
    assert [fault.file for fault in found] == [one.name, other.name]
    assert {fault.what for fault in found} == {"the file does not describe its archive"}


# Damage by hand: archives


def test_without_an_index_the_way_behind_a_damaged_header_is_still_found(copy: Path) -> None:
    archive, index = copy / "000000.tar", copy / "000000.idx"
    index.unlink()
    whole = archive.read_bytes()
    start, stop = next((start, stop) for start, stop, key, _ in pieces(whole) if key == "room_001")
    archive.write_bytes(whole[:start] + bytes(4) + whole[start + 4 :])
    lost, members_left, digest, missing = faults(copy)
    assert lost.what == "these bytes belong to no member, for there is no usable header"
    assert lost.span == (start, stop)
    assert (members_left.key, members_left.seen) == ("room_001", "labels.lz4 cls")
    assert "SHA-256" in digest.what
    assert (missing.file, missing.what) == (index.name, "the file is missing")


def test_without_an_index_the_checksums_of_the_samples_behind_a_lost_one_are_found(copy: Path) -> None:
    archive, index = copy / "000000.tar", copy / "000000.idx"
    index.unlink()
    damaged = bytearray(archive.read_bytes())
    for start, _, key, _ in pieces(bytes(damaged)):
        if key == "room_000":
            damaged[start] ^= 1
    archive.write_bytes(damaged)
    assert [fault.what.split(" ")[0:2] for fault in faults(copy)] == [
        ["these", "bytes"],
        ["the", "SHA-256"],
        ["the", "number"],
        ["the", "file"],  # is missing
    ]


@pytest.mark.parametrize(
    "content", [b"\xff" * 900, b"v1.2 3\n" + b"jpg 512 9 \xe9.jpg\n" * 3, b"jpg 512 9 x.jpg\n" * 99]
)
def test_an_index_of_nonsense_keeps_nothing_from_being_checked(copy: Path, content: bytes) -> None:
    archive, index = copy / "000000.tar", copy / "000000.idx"
    name = b"n" * 200 + b".jpg"
    index.write_bytes(content + b"\njpg 512 9 " + name)
    assert {fault.file for fault in faults(copy)} == {index.name}
    archive.write_bytes(flipped(archive.read_bytes(), 3, 1))
    assert {fault.file for fault in faults(copy)} <= {index.name, archive.name}


def test_an_index_that_points_to_the_end_leaves_the_archive_blameless(copy: Path) -> None:
    index = copy / "000000.idx"
    end = (copy / "000000.tar").stat().st_size - 1024
    before = index.read_text()
    after = before.replace(" cls ", f" cls {end + 512} 1 x.cls ", 1)
    assert after != before
    index.write_text(after)
    assert the_fault(copy).file == index.name


def test_a_wrong_size_in_the_manifest_is_the_only_fault(copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest["shards"][1].update(bytes=12345))
    fault = the_fault(copy)
    assert (fault.file, fault.what) == ("000001.tar", "the size is not the manifest's, though the SHA-256 is")


def test_a_wrong_hash_does_not_hide_a_damaged_file_of_checksums(copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest["shards"][1].update(sha256="0" * 64))
    checksums = copy / "000001.crc"
    checksums.write_bytes(checksums.read_bytes()[:-1])
    assert [fault.file for fault in faults(copy)] == ["000001.tar", "000001.crc"]


def test_a_shard_cut_short_is_checked_as_far_as_it_goes(copy: Path) -> None:
    archive = copy / "000000.tar"
    whole = archive.read_bytes()
    (start, stop) = next((a, b) for a, b, key, extension in pieces(whole) if (key, extension) == ("room_002", "jpg"))
    archive.write_bytes(flipped(whole[: start + 700], 600, 1))  # and the first sample's image is damaged
    found = {fault.what: fault for fault in faults(copy)}
    assert found["the archive ends inside a member"].span == (start + 512, start + 700)
    assert found["the archive ends inside a member"].key == "room_002"
    assert found["the file is cut short"].expected == f"{len(whole)} bytes"
    assert found["a member's CRC-32 is not that of the packed one"].key == "room_000"
    assert (found["the number of samples is not the manifest's"].seen, stop < len(whole)) == (2, True)


@pytest.mark.parametrize(("left", "what"), [(512, "the archive has no end"), (1024, "the archive has no end")])
def test_an_archive_without_its_end_is_found(copy: Path, left: int, what: str) -> None:
    archive = copy / "000000.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-left])
    first, second = faults(copy)
    assert (first.what, first.span) == (what, (len(whole) - 1024, len(whole) - left))
    assert second.what == "the file is cut short"


def test_a_longer_archive_is_found(copy: Path) -> None:
    archive = copy / "000000.tar"
    archive.write_bytes(archive.read_bytes() + bytes(512))
    assert the_fault(copy).what == "the file is longer than it was packed"


def test_a_wrong_hash_of_a_whole_shard_is_said_to_be_that(copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest["shards"][1].update(sha256="0" * 64))
    fault = the_fault(copy)
    assert fault.file == "000001.tar"
    assert "though every member has the checksum" in fault.what
    assert fault.expected == "0" * 64


def test_faults_of_a_shard_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    count = LISTED + 20
    pack(Photos(count), tmp_path / "out", size=16, samples_per_shard=count)
    change_manifest(tmp_path / "out", lambda manifest: manifest["shards"][0].update(sha256="0" * 64))
    checksums = tmp_path / "out" / "000000.crc"
    checksums.write_text(f"crc32 {count}\n" + "00000000\n" * count)
    report = verify(tmp_path / "out")
    assert len(report.faults) == LISTED
    assert report.unlisted == {"000000.tar": 21}  # the SHA-256 comes first
    assert report.num_faults == count + 1


# Damage by hand: samples that were packed wrongly, with hashes to match


def jpeg(side: int = 24, **options: Any) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), (90, 60, 30)).save(file, "JPEG", **{"quality": 95, "subsampling": "4:2:0"} | options)
    return file.getvalue()


def noisy_jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling="4:2:0")
    return file.getvalue()


def planes(side: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    normal = np.zeros((side, side, 3), np.float32)
    normal[..., 2] = -1
    return np.full((side, side), 2, np.float32), normal, np.zeros((side, side), bool)


def block(change: Callable[[TargetLayout, np.ndarray], None], side: int = 24) -> bytes:
    """A target block whose inflated bytes were changed."""
    layout = TargetLayout(side, side)
    inflated = lz4.block.decompress(encode_targets(*planes(side)), uncompressed_size=layout.num_bytes)
    changed = np.frombuffer(bytearray(inflated), np.uint8)
    change(layout, changed)
    return lz4.block.compress(changed, store_size=False)


def one_normal(*codes: int) -> Callable[[TargetLayout, np.ndarray], None]:
    """The last row's first pixel; nothing is added to it further down."""

    def change(layout: TargetLayout, inflated: np.ndarray) -> None:
        plane = layout.normal.view(inflated)
        above = plane[:-1, 0].sum(axis=0, dtype=np.uint8)
        plane[-1, 0] = np.array(codes, np.uint8) - above

    return change


def test_true_samples_written_by_hand_are_taken(copy: Path) -> None:
    (name, _), *rest = members(copy / "000002.tar")
    write_shard(copy, "000002", [(name, jpeg()), ("room_006.labels.lz4", block(one_normal(0, 0, 0))), rest[-1]])
    assert {fault.file for fault in faults(copy)} == {"manifest.json"}
    assert all(fault.what.startswith("statistics.") for fault in faults(copy))


@pytest.mark.parametrize(
    ("extension", "content", "what"),
    [
        ("jpg", b"no image", "a JPEG is damaged"),
        ("jpg", b"", "a JPEG is damaged"),
        ("jpg", jpeg()[:-300], "a JPEG is damaged"),
        ("jpg", noisy_jpeg()[:-60], "a JPEG is damaged"),  # lenient decoders make the rest gray
        ("jpg", jpeg(25), "a JPEG has the wrong size"),
        ("jpg", jpeg(quality=94), "a JPEG was not made with the manifest's settings"),
        ("jpg", jpeg(subsampling="4:4:4"), "a JPEG was not made with the manifest's settings"),
        ("jpg", jpeg(progressive=True), "a JPEG was not made with the manifest's settings"),
        ("labels.lz4", b"\xff" * 30, "a target block is damaged"),
        ("labels.lz4", encode_targets(*planes(23)), "a target block does not fit an image of 24 x 24 pixels"),
        ("labels.lz4", block(one_normal(128, 0, 0)), "normals are known in some coordinates only"),
        ("labels.lz4", block(one_normal(128, 128, 60)), "normals are not of unit length"),
        ("labels.lz4", block(one_normal(240, 240, 1)), "normals are not of unit length"),
        ("cls", b"", "a class is not a number"),
        ("cls", b"01", "a class is not a number"),
        ("cls", b"-1", "a class is not a number"),
        ("cls", b"1\n", "a class is not a number"),
        ("cls", b"9" * 5000, "a class is not a number"),
    ],
)
def test_a_member_that_was_packed_wrongly_is_found(copy: Path, extension: str, content: bytes, what: str) -> None:
    files = [(name, content if name == f"room_001.{extension}" else old) for name, old in members(copy / "000000.tar")]
    write_shard(copy, "000000", files)
    fault = the_fault(copy)
    assert (fault.file, fault.key, fault.member, fault.what) == ("000000.tar", "room_001", extension, what)
    with tarfile.open(copy / "000000.tar") as tar:
        start = tar.getmember(f"room_001.{extension}").offset_data
    assert fault.span == (start, start + len(content))


def test_contours_outside_of_the_image_are_found(tmp_path: Path) -> None:
    pack(RoomSource(Path("rooms"), 1), tmp_path / "out", size=20)

    def change(layout: TargetLayout, inflated: np.ndarray) -> None:
        layout.edge.view(inflated)[3, -1] |= 0b1000

    image, _, class_index = members(tmp_path / "out" / "000000.tar")
    write_shard(tmp_path / "out", "000000", [image, ("room_000.labels.lz4", block(change, 20)), class_index])
    assert the_fault(tmp_path / "out").what == "contours are marked outside of the image"


@pytest.mark.parametrize(
    "names", ["labels.lz4 jpg", "jpg", "labels.lz4 cls", "jpg labels.lz4 png", "jpg jpg labels.lz4"]
)
def test_a_sample_of_other_members_is_found(copy: Path, names: str) -> None:
    parts = {"jpg": jpeg(), "labels.lz4": encode_targets(*planes()), "cls": b"1", "png": b"?"}
    write_shard(copy, "000002", [(f"room_006.{name}", parts[name]) for name in names.split(" ")])
    fault = the_fault(copy)
    assert fault.what == "a sample does not have the members that the manifest says"
    assert (fault.file, fault.key, fault.seen) == ("000002.tar", "room_006", names)


def test_a_sample_may_lack_a_class(copy: Path) -> None:
    write_shard(copy, "000002", [("room_006.jpg", jpeg()), ("room_006.labels.lz4", encode_targets(*planes()))])
    assert not [fault for fault in faults(copy) if not fault.what.startswith("statistics.")]


@pytest.mark.parametrize("key", ["Room_006", "room 006", "r" * 90, ""])
def test_a_key_that_cannot_be_used_is_found(copy: Path, key: str) -> None:
    parts = {"jpg": jpeg(), "labels.lz4": encode_targets(*planes())}
    if len(key) > 89:
        parts = {"jpg": jpeg()}  # the other name would not fit a header
    write_shard(copy, "000002", [(f"{key}.{name}", content) for name, content in parts.items()])
    found = {fault.what: fault for fault in faults(copy)}
    assert found["a key cannot be used"].key == key


def test_a_key_that_comes_twice_is_found(copy: Path) -> None:
    files = [(name.replace("room_006", "room_001"), content) for name, content in members(copy / "000002.tar")]
    write_shard(copy, "000002", files)
    fault = the_fault(copy)
    assert (fault.file, fault.key, fault.what) == ("000002.tar", "room_001", "a key comes twice")
    assert "000000.tar" in str(fault.seen)


def test_a_key_of_another_part_is_found(copy: Path) -> None:
    places = {f"room_{number:03d}": key_place(f"room_{number:03d}") for number in (0, 1, 2, 3, 4, 6)}
    highest = max(places, key=lambda key: places[key])
    change_manifest(copy, lambda m: m["settings"]["selection"].update(part=[0.0, places[highest]]))
    fault = the_fault(copy)
    assert (fault.key, fault.what) == (highest, "a key is not of the part that was asked for")


# Damage by hand: what the manifest says


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["settings"].update(size=23), "the image size is not the one that was asked for"),
        (lambda m: m["settings"]["selection"].update(limit=6), "there are more samples than were asked for"),
        (lambda m: m["settings"].update(samples_per_shard=4), "a shard is out of order"),
        (lambda m: m["settings"].update(samples_per_shard=2), "a shard has more samples than it could"),
        (lambda m: m["shards"].reverse(), "a shard is out of order"),
        (lambda m: m["settings"].update(jpeg_quality=94), "a JPEG was not made with the manifest's settings"),
        (lambda m: m["statistics"].update(classes=4), "statistics.classes is not that of the samples"),
        (lambda m: m.update(quarantined=2), "the number of lines is not the manifest's"),
    ],
)
def test_a_manifest_that_says_something_else_is_found(
    copy: Path, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    change_manifest(copy, change)
    assert what in {fault.what for fault in faults(copy)}


def test_every_statistic_is_that_of_the_samples(copy: Path) -> None:
    path = copy / "manifest.json"
    whole = path.read_text("utf-8")
    statistics = json.loads(whole)["statistics"]
    del statistics["camera"]
    fields = [field for field, value in leaves(statistics).items() if isinstance(value, int)]
    assert len(fields) > 30
    for field in fields:

        def change(manifest: dict[str, Any], field: str = field) -> None:
            *way, last = field.split(".")
            place: Any = manifest["statistics"]
            # An extension has a dot of its own.
            if "labels.lz4" in field:
                way = ["member_bytes", "labels.lz4"]
            for name in way:
                place = place[name]
            place[int(last) if isinstance(place, list) else last] += 1

        change_manifest(copy, change)
        fault = the_fault(copy)
        assert fault.file == "manifest.json"
        assert fault.what.removeprefix("statistics.").split(" is ")[0] == field.rstrip("0123456789").rstrip(".")
        path.write_text(whole, "utf-8")


def test_colours_of_another_decoder_s_version_are_not_compared(copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["versions"]["simplejpeg"] = "0.1"
        manifest["statistics"]["planes"]["image"]["total"][0] += 1

    change_manifest(copy, change)
    assert faults(copy) == []


def test_a_manifest_in_another_form_is_found(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))), "utf-8")
    assert the_fault(copy).what == "the file is not written the way in which fastssl writes it"


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '["reference", "reason"]',
        '{"reference": "5"}',
        '{"reference": "5", "reason": ""}',
        '{"reference": "5", "reason": 7}',
        '{"reason": "bad", "reference": "5"}',
        '{"reference":"5","reason":"bad"}',
        '{"reference": "5", "reason": "é"}',
    ],
)
def test_a_line_that_packing_does_not_write_is_found(copy: Path, line: str) -> None:
    (copy / "quarantine.jsonl").write_text(f"{line}\n", "utf-8")
    fault = the_fault(copy)
    assert fault.what == "a line is not an image and the reason why it was left out"
    assert fault.span == (0, len(f"{line}\n".encode()))


def test_a_quarantine_list_where_none_should_be_is_found(packed: dict[str, Path], tmp_path: Path) -> None:
    pack(Photos(2), tmp_path / "out", size=16)
    (tmp_path / "out" / "quarantine.jsonl").touch()
    assert the_fault(tmp_path / "out").expected == "no such file"


# What a user reads


def test_a_fault_reads_as_a_sentence() -> None:
    fault = Fault(file="000001.tar", key="a", member="jpg", span=(512, 600), what="it is damaged", seen=3, expected=0)
    assert str(fault) == "000001.tar, a.jpg, bytes 512 to 599: it is damaged (seen 3, expected 0)"
    assert str(Fault(file="000001.idx", span=(7, 8), what="it is damaged")) == "000001.idx, byte 7: it is damaged"


@pytest.mark.parametrize("name", ["000000.tar", "000000.idx", "000000.crc", "quarantine.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    assert any(fault.file == name and "cannot be read" in fault.what for fault in faults(copy))


def test_a_pipe_in_the_place_of_the_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    os.mkfifo(copy / "manifest.json")
    with pytest.raises(DataError, match="the manifest cannot be read"):
        verify(copy)
