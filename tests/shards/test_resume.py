"""Packings that are killed, run out of disk, or are done by a cluster: the same bytes in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import packing
import pytest
from analytic_rooms import RoomSource
from PIL import Image

from fastssl.batch import Record
from fastssl.errors import DataError, UsageError
from fastssl.files import alone_in
from fastssl.shards import pack, read_manifest
from fastssl.shards.image_codec import ImageCodecName

COUNT = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what one process packs without a break."""
    out = tmp_path_factory.mktemp("undisturbed") / "rooms"
    packing.finish(packing.start(out, COUNT, 1, height=480))
    assert read_manifest(out).samples == COUNT - 1
    return packing.digest(out)


@pytest.mark.parametrize("workers", [2, pytest.param(5, marks=pytest.mark.soak)])
def test_any_number_of_workers_writes_the_same_bytes(undisturbed: str, tmp_path: Path, workers: int) -> None:
    packing.finish(packing.start(tmp_path / "rooms", COUNT, workers, height=480))
    assert packing.digest(tmp_path / "rooms") == undisturbed


@pytest.mark.soak
def test_a_ray_cluster_writes_the_same_bytes(undisturbed: str, tmp_path: Path) -> None:
    packing.finish(packing.start(tmp_path / "rooms", COUNT, 1, "local", height=480))
    assert packing.digest(tmp_path / "rooms") == undisturbed


@pytest.mark.parametrize(
    ("workers", "times"), [(2, 2), *(pytest.param(workers, 10, marks=pytest.mark.soak) for workers in (1, 2, 5))]
)
def test_a_packing_killed_at_random_moments_ends_with_the_same_bytes(
    undisturbed: str, tmp_path: Path, workers: int, times: int
) -> None:
    out, rng, kills, finished = tmp_path / "rooms", random.Random(workers), 0, []
    while kills < times:
        process = packing.start(out, COUNT, workers, height=480)
        begun = len(list(out.glob("*.tar")))
        while process.poll() is None and len(list(out.glob("*.tar"))) <= begun:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        kills += packing.kill(process)
        finished.append(len(list(out.glob("*.tar"))))
        assert not (out / "manifest.json").exists()
    assert finished == sorted(finished)
    packing.finish(packing.start(out, COUNT, workers, height=480))
    assert packing.digest(out) == undisturbed


def test_finished_shards_are_not_packed_again(tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=6), out, size=32, samples_per_shard=3)
    before = (out / "000001.tar").stat()
    pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3, resume=True)
    after = (out / "000001.tar").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert not (out / ".packing").exists()


def test_a_shard_that_was_removed_meanwhile_is_packed_again(tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=6), out, size=32, samples_per_shard=3)
    (out / "000000.tar").unlink()
    pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3, resume=True)
    pack(RoomSource(tmp_path, 7), tmp_path / "again" / "x", size=32, samples_per_shard=3)
    assert packing.digest(out) == packing.digest(tmp_path / "again" / "x")


def test_resuming_what_is_complete_does_nothing(tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    manifest = pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3)
    before = packing.digest(out)
    assert pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3, resume=True) == manifest
    assert packing.digest(out) == before


def interrupted(folder: Path) -> Path:
    out = folder / "rooms"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(folder, 7, trouble="bug", at=6), out, size=32, samples_per_shard=3)
    return out


def test_a_packing_continues_with_its_own_settings_only(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    with pytest.raises(UsageError, match=r"settings\.jpeg_quality"):
        pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3, jpeg_quality=90, resume=True)
    with pytest.raises(UsageError, match="interrupted"):
        pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3)
    complete = tmp_path / "complete"
    pack(RoomSource(tmp_path, 7), complete, size=32)
    with pytest.raises(UsageError, match=r"settings\.size"):
        pack(RoomSource(tmp_path, 7), complete, size=16, resume=True)


@pytest.mark.parametrize(("begun", "wanted"), [("jpeg", "lz4"), ("lz4", "jpeg")])
def test_a_packing_that_continues_with_another_codec_is_told_so(
    tmp_path: Path, begun: ImageCodecName, wanted: ImageCodecName
) -> None:
    """And not of the quality and subsampling that only one of them has."""
    pack(RoomSource(tmp_path, 2), tmp_path / "rooms", size=32, image_codec=begun)
    with pytest.raises(UsageError, match="begun with other settings") as raised:
        pack(RoomSource(tmp_path, 2), tmp_path / "rooms", size=32, image_codec=wanted, resume=True)
    where = f"{tmp_path / 'rooms'}: settings.image_codec"
    assert (raised.value.where, raised.value.seen, raised.value.expected) == (where, wanted, begun)


def test_a_dataset_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    class Renamed(RoomSource):
        def references(self):
            return map(str, range(1, self.count + 1))

    out = interrupted(tmp_path)
    with pytest.raises(DataError, match="has changed"):
        pack(Renamed(tmp_path, 7), out, size=32, samples_per_shard=3, resume=True)


def test_more_bad_images_may_be_allowed_when_a_packing_is_resumed(tmp_path: Path) -> None:
    source, out = RoomSource(tmp_path, 7, trouble="bad", at=4), tmp_path / "rooms"
    with pytest.raises(DataError, match="no floor"):
        pack(source, out, size=32, samples_per_shard=3, max_bad=0)
    assert pack(source, out, size=32, samples_per_shard=3, max_bad=1, resume=True).samples == 6


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    """A folder of four small photos, and then four of noise, which need far more bytes."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = np.full((64, 64, 3), 99, np.uint8)
        if number >= 4:
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def command(out: str, *more: str) -> list[str]:
    return ["shard", "photos", out, "--size", "64", "--samples-per-shard", "4", *more]


def test_a_full_disk_is_told_and_what_is_finished_can_be_continued(two_shards: Path) -> None:
    """A limit on file sizes stands for the disk's end: writing fails in the middle of a shard, for real."""
    # First, because what it compiles and keeps would be cut short by the limit too.
    subprocess.run([sys.executable, "-m", "fastssl", *command("other")], cwd=two_shards, check=True)
    code = (
        "import resource, signal, sys; sys.dont_write_bytecode = True; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); "
        f"sys.argv = ['fastssl', *{command('out')}]; from fastssl.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=two_shards, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    for words in ("cannot be written", "000001.tar", "--resume"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    out = two_shards / "out"
    assert sorted(path.name for path in out.iterdir()) == [".packing", "000000.crc", "000000.idx", "000000.tar"]
    subprocess.run([sys.executable, "-m", "fastssl", *command("out", "--resume")], cwd=two_shards, check=True)
    assert packing.digest(out) == packing.digest(two_shards / "other")


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_an_interrupt_can_be_continued(undisturbed: str, tmp_path: Path, workers: int) -> None:
    """Ctrl-C reaches the whole process group, as from a terminal."""
    out = tmp_path / "rooms"
    process = packing.start(out, COUNT, workers, height=480)
    while not (out / "000000.tar").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT  # Python's own end; the command line makes 130 of it
    assert "KeyboardInterrupt" in errors
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.partial"))
    packing.finish(packing.start(out, COUNT, workers, height=480))
    assert packing.digest(out) == undisturbed


@pytest.mark.parametrize("name", ["000001.tar", "000001.idx", "000001.crc"])
@pytest.mark.parametrize("damage", ["removed", "emptied", "flipped", "a pipe"])
def test_a_finished_shard_that_was_damaged_is_packed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    out = tmp_path / "rooms"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=6), out, size=32, samples_per_shard=3)
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).unlink()
    if damage == "a pipe":
        os.mkfifo(out / name)
    elif damage != "removed":
        (out / name).write_bytes(content if damage == "flipped" else b"")
    pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3, resume=True)
    assert f"{name} missing or damaged" in caplog.text
    pack(RoomSource(tmp_path, 7), tmp_path / "whole", size=32, samples_per_shard=3)
    assert packing.digest(out) == packing.digest(tmp_path / "whole")


@pytest.mark.parametrize("name", ["000001.tar", "000001.idx", "000001.crc"])
def test_a_complete_dataset_that_lost_a_file_is_not_called_done(tmp_path: Path, name: str) -> None:
    out = tmp_path / "rooms"
    pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3)
    (out / name).unlink()
    with pytest.raises(DataError, match=rf"no longer whole(.|\n)*{name}"):
        pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3, resume=True)


def test_other_settings_are_told_the_right_way_round(tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=6), out, size=32, samples_per_shard=3)
    with pytest.raises(UsageError) as told:
        pack(RoomSource(tmp_path, 7), out, size=48, samples_per_shard=3, resume=True)
    assert (told.value.seen, told.value.expected) == (48, 32)


def test_a_packing_that_is_still_at_it_is_told_from_one_that_was_interrupted(tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=6), out, size=32, samples_per_shard=3)
    with pytest.raises(UsageError, match="interrupted"):
        pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3)
    with alone_in(out, "packing"), pytest.raises(UsageError, match="another packing works on the folder right now"):
        pack(RoomSource(tmp_path, 7), out, size=32, samples_per_shard=3)


def test_a_pipe_in_the_place_of_the_plan_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "rooms" / ".packing").mkdir(parents=True)
    os.mkfifo(tmp_path / "rooms" / ".packing" / "plan.json")
    with pytest.raises(OSError, match="not a regular file"):
        pack(RoomSource(tmp_path, 7), tmp_path / "rooms", size=32, resume=True)


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_gone_for_a_moment_is_looked_for_again(tmp_path: Path, times: int) -> None:
    """Once is a hiccup of a network file system; a file that stays away is missing."""
    calls = 0

    class Forgetful(RoomSource):
        def read(self, reference: str) -> Record:
            nonlocal calls
            is_first = reference == next(iter(self.references()))
            calls += is_first
            if is_first and calls <= times:
                raise DataError("a file is missing", where=reference) from FileNotFoundError(2, "No such file")
            return super().read(reference)

    manifest = pack(Forgetful(tmp_path, 3), tmp_path / "out", size=32)
    assert (manifest.samples, manifest.quarantined) == ((3, 0) if times == 1 else (2, 1))
