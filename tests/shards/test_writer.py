from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import lz4.block
import numpy as np
import pytest
import webdataset
from analytic_rooms import RoomSource, room
from PIL import Image

from fastssl.batch import Record
from fastssl.errors import DataError, DeviceError, UsageError
from fastssl.shards import TARGETS, DomainName, ShardSet, TargetLayout, pack, read_manifest, read_samples, writer
from fastssl.shards.writer import Progress
from fastssl.sources.folder import FolderSource

README = Path(__file__).parents[2] / "shards" / "README.md"


unclosed_by_webdataset = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class Records:
    """Records from memory."""

    layout = "memory"
    domain: DomainName = "real"
    licence = "CC0-1.0"
    subset = None

    def __init__(self, *records: Record, domain: DomainName = "real") -> None:
        self.path, self.records, self.domain = Path("memory"), records, domain
        self.labelled = domain == "synthetic"

    def references(self) -> Iterator[str]:
        return map(str, range(len(self.records)))

    def key(self, reference: str) -> str:
        return self.records[int(reference)].key

    def read(self, reference: str) -> Record:
        return self.records[int(reference)]


def photo(key: str, class_index: int | None = None) -> Record:
    return Record(key=key, image=np.zeros((4, 4, 3), np.uint8), class_index=class_index)


def digest(folder: Path) -> str:
    """Of all names and contents."""
    sha256 = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        sha256.update(path.name.encode() + path.read_bytes())
    return sha256.hexdigest()


def test_any_number_of_workers_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    (photos / "photo-05.jpg").write_bytes(b"not an image")
    rooms = RoomSource(tmp_path / "rooms", 7, trouble="bad", at=2)
    for source, numbers in ((FolderSource(photos), (1, 2)), (rooms, (1, 2, 3))):
        outs = [tmp_path / f"{source.layout}-{workers}" for workers in numbers]
        for out, workers in zip(outs, numbers, strict=True):
            pack(source, out, size=32, samples_per_shard=2, workers=workers, max_bad=1)
        assert len({digest(out) for out in outs}) == 1


def test_the_bytes_do_not_depend_on_where_and_when(rooms: Path, tmp_path: Path) -> None:
    pack(RoomSource(tmp_path / "elsewhere" / "rooms", 7), tmp_path / "again", size=32, samples_per_shard=3)
    assert digest(tmp_path / "again") == digest(rooms)


def test_archives_are_plain_ustar(rooms: Path) -> None:
    names = []
    for archive in sorted(rooms.glob("*.tar")):
        with tarfile.open(archive, format=tarfile.USTAR_FORMAT) as tar:
            members = tar.getmembers()
            assert tar.pax_headers == {}
        names += [member.name for member in members]
        for member in members:
            assert (member.type, member.mode, member.mtime) == (tarfile.REGTYPE, 0o644, 0)
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.offset_data == member.offset + 512  # no extended header in between
        content = archive.read_bytes()
        assert content.endswith(bytes(1024))
        assert content[257:263] == b"ustar\0"
    assert names == [f"room_{i:03d}.{part}" for i in range(7) for part in ("jpg", "labels.lz4", "cls")]


def test_the_index_agrees_with_tarfile(rooms: Path) -> None:
    for archive in rooms.glob("*.tar"):
        head, *lines = archive.with_suffix(".idx").read_text().splitlines()
        words = [line.split(" ") for line in lines]
        listed = [tuple(line[i : i + 4]) for line in words for i in range(0, len(line), 4)]
        with tarfile.open(archive) as tar:
            members = [(m.name.split(".", 1)[1], str(m.offset_data), str(m.size), m.name) for m in tar.getmembers()]
        assert listed == members
        assert head == f"v1.2 {len(lines)}"


@unclosed_by_webdataset
def test_webdataset_alone_reads_the_shards(rooms: Path) -> None:
    urls = [str(path) for path in sorted(rooms.glob("*.tar"))]
    seen = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in seen] == [f"room_{i:03d}" for i in range(7)]
    for sample, ours in zip(seen, read_samples(rooms), strict=True):
        np.testing.assert_array_equal(np.array(Image.open(BytesIO(sample["jpg"]))), ours.image)
        assert int(sample["cls"]) == ours.class_index


@unclosed_by_webdataset
def test_the_snippet_of_the_format_page_reads_the_shards(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(rooms.parent)
    last: dict[str, np.ndarray] = {}
    exec(snippet, last)
    assert len(capsys.readouterr().out.splitlines()) == 7
    truth, shape = room(6, 24, 40), (32, 32)
    rows, columns = (((np.arange(32) + 0.5) * side / 32).astype(int) for side in (24, 40))
    depth, normal = truth.depth[rows][:, columns], truth.normal[rows][:, columns]
    assert last["edge"].shape == last["depth"].shape == shape
    assert np.abs(last["depth"] - depth).max() <= 0.00051
    np.testing.assert_array_equal(last["known"], depth > 0)
    cosine = (last["normal"] * normal).sum(axis=2)[last["known"]]
    assert np.degrees(np.arccos(cosine.min())) <= 0.39


def test_dali_reads_archive_and_index(rooms: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    archives = sorted(rooms.glob("*.tar"))

    @pipeline_def(batch_size=7, num_threads=1, device_id=None, seed=0)
    def pipeline() -> object:
        return tuple(
            fn.readers.webdataset(
                paths=[str(path) for path in archives],
                index_paths=[str(path.with_suffix(".idx")) for path in archives],
                ext=["jpg", "labels.lz4", "cls"],
                missing_component_behavior="error",
            )
        )

    pipe = pipeline()
    pipe.build()
    outputs = pipe.run()
    seen = [[np.asarray(output.at(i)).tobytes() for output in outputs] for i in range(7)]
    expected = []
    for archive in archives:
        with tarfile.open(archive) as tar:
            files = (tar.extractfile(member) for member in tar.getmembers())
            contents = [file.read() for file in files if file is not None]
        expected += [contents[i : i + 3] for i in range(0, len(contents), 3)]
    assert seen == expected


@pytest.mark.parametrize(("height", "width"), [(48, 96), (24, 20), (32, 32)])
def test_image_and_planes_are_squashed_alike(tmp_path: Path, height: int, width: int) -> None:
    source = RoomSource(tmp_path / "rooms", 1, height=height, width=width)
    pack(source, tmp_path / "out", size=32)
    (sample,) = read_samples(tmp_path / "out")
    truth = source.read("0")

    def resized(plane: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.array(Image.fromarray(plane).resize((32, 32), how))

    image = resized(truth.image, Image.Resampling.BICUBIC).astype(int)
    assert np.abs(sample.image - image).mean() < 2
    assert np.abs(sample.image[:, ::-1] - image).mean() > 20
    assert np.abs(sample.depth - resized(truth.depth, Image.Resampling.NEAREST)).max() <= 0.00051
    instance = np.pad(resized(truth.instance, Image.Resampling.NEAREST), (0, 1), mode="edge")
    edge = (instance[:-1, :-1] != instance[:-1, 1:]) | (instance[:-1, :-1] != instance[1:, :-1])
    np.testing.assert_array_equal(sample.edge, edge)


def test_the_camera_is_that_of_the_squashed_image(tmp_path: Path) -> None:
    # 3 and 5 pixels become one, so the nearest pixel is the middle one and its ray exactly that of the packed pixel.
    manifest = pack(RoomSource(tmp_path / "rooms", 1, height=96, width=160), tmp_path / "out", size=32)
    (sample,) = read_samples(tmp_path / "out")
    camera = manifest.statistics.camera.min
    rays = np.ones((32, 32, 3))
    rays[..., 0] = ((np.arange(32) + 0.5 - camera.cx) / camera.fx)[None]
    rays[..., 1] = ((np.arange(32) + 0.5 - camera.cy) / camera.fy)[:, None]
    points = rays * sample.depth[..., None]
    for normal in ((0, 0, -1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0)):
        face = sample.valid & (sample.normal @ np.array(normal) > 0.99)
        assert face.sum() > 3
        assert np.ptp(points[face] @ np.array(normal)) < 0.002


def test_the_manifest_counts_what_was_packed(rooms: Path) -> None:
    manifest = read_manifest(rooms)
    assert (manifest.samples, manifest.height, manifest.width, manifest.statistics.classes) == (7, 32, 32, 3)
    assert (manifest.domain, manifest.layout, manifest.source, manifest.licence) == (
        "synthetic",
        "rooms",
        "rooms",
        "CC0-1.0",
    )
    sizes: dict[str, list[int]] = {}
    for entry in manifest.shards:
        content = (rooms / entry.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.bytes, entry.sha256)
        with tarfile.open(rooms / entry.name) as tar:
            assert len(tar.getmembers()) == 3 * entry.samples
            for member in tar.getmembers():
                sizes.setdefault(member.name.split(".", 1)[1], []).append(member.size)
    assert {name: (s.count, s.total, s.min, s.max) for name, s in manifest.statistics.member_bytes.items()} == {
        name: (len(s), sum(s), min(s), max(s)) for name, s in sizes.items()
    }
    cameras = [room(seed, 24, 40).camera for seed in range(7)]
    for name, scale in (("fx", 32 / 40), ("fy", 32 / 24), ("cx", 32 / 40), ("cy", 32 / 24)):
        values = [getattr(camera, name) * scale for camera in cameras]
        assert getattr(manifest.statistics.camera.min, name) == pytest.approx(min(values))
        assert getattr(manifest.statistics.camera.max, name) == pytest.approx(max(values))


def test_statistics_do_not_depend_on_how_many_are_merged_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RoomSource(tmp_path / "rooms", 7)
    whole = pack(source, tmp_path / "whole", size=16)
    monkeypatch.setattr(writer, "_MERGED_AT_ONCE", 3)
    assert pack(source, tmp_path / "few", size=16).statistics == whole.statistics


def test_target_blocks_are_packed_at_the_level_that_was_asked_for(rooms: Path, tmp_path: Path) -> None:
    block = ShardSet(rooms).member(0, TARGETS).tobytes()
    assert read_manifest(rooms).settings.lz4_level == 0
    content = lz4.block.decompress(block, uncompressed_size=TargetLayout(32, 32).num_bytes)
    assert block == lz4.block.compress(content, store_size=False)
    smaller = pack(RoomSource(tmp_path / "rooms", 2), tmp_path / "smaller", size=32, lz4_level=9)
    assert smaller.settings.lz4_level == 9
    block = ShardSet(tmp_path / "smaller").member(0, TARGETS).tobytes()
    assert block == lz4.block.compress(content, mode="high_compression", compression=9, store_size=False)


def test_a_bad_image_stops_packing_and_is_named(photos: Path, tmp_path: Path) -> None:
    (photos / "photo-07.jpg").write_bytes((photos / "photo-07.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"photo-07\.jpg"):
        pack(FolderSource(photos), tmp_path / "out", size=32, max_bad=0)


def test_bad_images_within_the_limit_are_listed_and_left_out(photos: Path, tmp_path: Path) -> None:
    for number in (0, 1, 7):
        (photos / f"photo-{number:02d}.jpg").write_bytes(b"")
    out = tmp_path / "out"
    # The first shard has no usable image at all.
    manifest = pack(FolderSource(photos), out, size=32, samples_per_shard=2, max_bad=3)
    assert manifest.quarantined == 3
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == ["photo-00.jpg", "photo-01.jpg", "photo-07.jpg"]
    assert "empty file" in lines[0]["reason"]
    assert str(tmp_path) not in (out / "quarantine.jsonl").read_text()
    keys = [sample.key for sample in read_samples(out)]
    assert keys == [f"photo-{number:02d}" for number in range(13) if number not in (0, 1, 7)]


@pytest.mark.parametrize("samples_per_shard", [2, 100])
def test_more_bad_images_than_allowed_stop_packing(photos: Path, tmp_path: Path, samples_per_shard: int) -> None:
    for number in (0, 5, 7):
        (photos / f"photo-{number:02d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"photo-07\.jpg"):
        pack(FolderSource(photos), tmp_path / "out", size=32, samples_per_shard=samples_per_shard, max_bad=2)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_exception_leaves_no_half_written_file(rooms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=4), out, size=32, samples_per_shard=3)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == {
        name: (rooms / name).read_bytes() for name in ("000000.tar", "000000.idx", "000000.crc")
    }


def test_a_killed_worker_ends_packing_and_leaves_only_whole_shards(rooms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DeviceError, match="worker"):
        pack(RoomSource(tmp_path, 7, trouble="killed", at=4), out, size=32, samples_per_shard=3, workers=2)
    assert not (out / "manifest.json").exists()
    finished = [path for path in out.iterdir() if path.suffix in (".tar", ".idx")]
    for path in finished:
        assert path.read_bytes() == (rooms / path.name).read_bytes()
    assert "000001.tar" not in [path.name for path in finished]


def test_a_used_output_folder_is_refused_and_left_alone(rooms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds"):
        pack(RoomSource(tmp_path, 1), out, size=32)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    before = digest(rooms)
    with pytest.raises(UsageError, match="already holds"):
        pack(RoomSource(tmp_path, 1), rooms, size=32)
    assert digest(rooms) == before
    with pytest.raises(UsageError, match="cannot be used"):
        pack(RoomSource(tmp_path, 1), out / "notes.txt", size=32)


@pytest.mark.parametrize("setting", ["size", "workers", "samples_per_shard", "jpeg_quality"])
def test_a_setting_out_of_range_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(UsageError, match=setting):
        pack(RoomSource(tmp_path, 1), tmp_path / "out", **{setting: 0})
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        pack(RoomSource(tmp_path, 0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_samples_shard_by_shard(photos: Path, tmp_path: Path) -> None:
    (photos / "photo-05.jpg").write_bytes(b"not an image")
    seen: list[Progress] = []
    manifest = pack(FolderSource(photos), tmp_path / "a", size=32, samples_per_shard=5, progress=seen.append)
    assert [now.references for now in seen] == [5, 10, 13]
    assert [now.samples for now in seen] == [5, 9, 12]
    assert [now.quarantined for now in seen] == [0, 1, 1]
    assert seen[-1].num_bytes == sum(entry.bytes for entry in manifest.shards)
    assert {now.total for now in seen} <= {None, 13}  # they are counted meanwhile


@pytest.mark.parametrize("key", ["", "Upper", "a.b", "a/b", "a b", "é", "k" * 90])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="key"):
        pack(Records(photo(key)), tmp_path / "out", size=8)


def test_the_longest_key_fits_a_ustar_name(tmp_path: Path) -> None:
    pack(Records(replace(room(0, 8, 8), key="k" * 89), domain="synthetic"), tmp_path / "out", size=8)
    (sample,) = read_samples(tmp_path / "out")
    assert sample.key == "k" * 89


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="same key"):
        pack(Records(photo("a"), photo("b"), photo("a")), tmp_path / "out", size=8)


@pytest.mark.parametrize("missing", ["depth", "normal", "instance", "camera"])
def test_a_synthetic_sample_needs_all_its_planes(tmp_path: Path, missing: str) -> None:
    with pytest.raises(DataError, match=missing):
        pack(Records(replace(room(0, 8, 8), **{missing: None}), domain="synthetic"), tmp_path / "out", size=8)


def test_planes_of_another_size_than_the_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="depth"):
        pack(
            Records(replace(room(0, 8, 8), depth=np.ones((8, 9), np.float32)), domain="synthetic"),
            tmp_path / "out",
            size=8,
        )


def test_classes_are_optional_for_each_sample(tmp_path: Path) -> None:
    manifest = pack(Records(photo("a", 4), photo("b"), photo("c", np.int64(6))), tmp_path / "out", size=8)
    assert manifest.statistics.classes == 7
    assert [sample.class_index for sample in read_samples(tmp_path / "out")] == [4, None, 6]
    with pytest.raises(DataError, match="class number is out of range"):
        pack(Records(photo("a", -1)), tmp_path / "other", size=8)


def test_the_user_s_licence_is_recorded(tmp_path: Path) -> None:
    assert pack(Records(photo("a")), tmp_path / "out", size=8, licence="CC-BY-4.0").licence == "CC-BY-4.0"
