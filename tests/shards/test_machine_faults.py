"""Faults of the machine while packing: never a sample less, whatever the day."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import packing
import pytest
from analytic_rooms import RoomSource
from sources.trees.photos import write_photos

from fastssl import faults
from fastssl.batch import Record
from fastssl.errors import DataError, MachineError, UsageError
from fastssl.shards import pack, read_samples, workers
from fastssl.shards.workers import in_order
from fastssl.sources import open_source


class Hiccup(RoomSource):
    """Rooms on a file system that fails so many times at one of them."""

    failures: Iterator[Exception]

    def read(self, reference: str) -> Record:
        if reference == "4" and (error := next(self.failures, None)) is not None:
            raise DataError("an image cannot be read", where=reference) from error
        return super().read(reference)


def rooms(folder: Path, *errors: Exception) -> Hiccup:
    source = Hiccup(folder, 7)
    source.failures = iter(errors)
    return source


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.ETIMEDOUT])
def test_a_fault_that_passes_costs_nothing_and_one_that_stays_stops(
    tmp_path: Path, waits: list[float], number: int
) -> None:
    error = OSError(number, os.strerror(number))
    pack(RoomSource(tmp_path, 7), tmp_path / "undisturbed", size=16, samples_per_shard=3)
    pack(rooms(tmp_path, error, error), tmp_path / "passing", size=16, samples_per_shard=3)
    assert packing.digest(tmp_path / "passing") == packing.digest(tmp_path / "undisturbed")
    assert len(waits) == 2
    with pytest.raises(MachineError, match=r"an image cannot be read(.|\n)*continue with --resume") as caught:
        pack(rooms(tmp_path, *[error] * 9), tmp_path / "lasting", size=16, samples_per_shard=3)
    assert os.strerror(number) in str(caught.value)
    assert not list((tmp_path / "lasting").glob("quarantine*"))
    pack(RoomSource(tmp_path, 7), tmp_path / "lasting", size=16, samples_per_shard=3, resume=True)
    assert packing.digest(tmp_path / "lasting") == packing.digest(tmp_path / "undisturbed")


def test_a_lack_of_memory_is_no_fault_of_the_image(tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(MachineError, match="out of memory"):
        pack(rooms(tmp_path, *[MemoryError()] * 9), tmp_path / "out", size=16)
    assert pack(rooms(tmp_path, MemoryError()), tmp_path / "out", size=16, resume=True).quarantined == 0


def test_only_damage_is_quarantined_and_its_file_is_named(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", "a.jpg", "b/c.jpg", "d.png")
    (source / "b" / "c.jpg").write_bytes((source / "b" / "c.jpg").read_bytes()[:200])
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photos").symlink_to(source)
        pack(open_source(tmp_path / name / "photos", "folder"), tmp_path / f"out_{name}", size=16)
    # Nothing that is packed depends on where the source lies.
    assert packing.digest(tmp_path / "out_one") == packing.digest(tmp_path / "out_other")
    (line,) = (tmp_path / "out_one" / "quarantine.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert told["reference"] == "b/c.jpg"
    assert told["reason"].startswith("an image cannot be read (b/c.jpg): ")


def test_a_dataset_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    """A server that went away, or a disk that was unmounted, takes every file with it."""
    source = write_photos(tmp_path / "photos", *(f"{number}.jpg" for number in range(6)))
    opened = open_source(source, "folder")
    pack(opened, tmp_path / "undisturbed", size=16, samples_per_shard=2)
    with pytest.raises(MachineError, match=r"is gone(.|\n)*--resume"):
        pack(
            opened, tmp_path / "out", size=16, samples_per_shard=2,
            progress=lambda now: source.rename(tmp_path / "away") if now.references == 2 else None,
        )  # fmt: skip
    (tmp_path / "away").rename(source)
    pack(opened, tmp_path / "out", size=16, samples_per_shard=2, resume=True)
    assert packing.digest(tmp_path / "out") == packing.digest(tmp_path / "undisturbed")


def classes(out: Path) -> dict[str, int | None]:
    return {sample.key: sample.class_index for sample in read_samples(out)}


def interrupted(folder: Path) -> Path:
    """A packing of two classes that stopped at a damaged image after its first shard, mended since."""
    source = write_photos(folder / "photos", *(f"{name}/{n}.jpg" for name in ("alpha", "zeta") for n in range(3)))
    kept = (source / "zeta" / "1.jpg").read_bytes()
    (source / "zeta" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(DataError):
        pack(open_source(source, "classes"), folder / "out", size=16, samples_per_shard=2, max_bad=0)
    (source / "zeta" / "1.jpg").write_bytes(kept)
    return source


def test_a_folder_without_images_changes_no_class(tmp_path: Path) -> None:
    source = interrupted(tmp_path)
    (source / "@eaDir").mkdir()
    pack(open_source(source, "classes"), tmp_path / "out", size=16, samples_per_shard=2, max_bad=0, resume=True)
    found = classes(tmp_path / "out")
    assert len(found) == 6
    assert all(number == (0 if key.startswith("alpha") else 1) for key, number in found.items())


@pytest.mark.parametrize("complete", [False, True])
def test_other_classes_are_refused_when_a_packing_is_resumed(tmp_path: Path, complete: bool) -> None:
    source = interrupted(tmp_path)
    options = {"size": 16, "samples_per_shard": 2, "max_bad": 0, "resume": True}
    if complete:
        pack(open_source(source, "classes"), tmp_path / "out", **options)
    write_photos(source, "middle/1.jpg")
    with pytest.raises(DataError, match=r"classes are not(.|\n)*seen: middle 1, zeta 2(.|\n)*middle not there, zeta 1"):
        pack(open_source(source, "classes"), tmp_path / "out", **options)


def test_a_damaged_state_is_told_or_packed_again(tmp_path: Path) -> None:
    source = interrupted(tmp_path)
    state = tmp_path / "out" / ".packing"
    (state / "000000.json").write_bytes(b"")
    pack(open_source(source, "classes"), tmp_path / "out", size=16, samples_per_shard=2, max_bad=0, resume=True)
    assert len(classes(tmp_path / "out")) == 6
    other = tmp_path / "other"
    other.mkdir()
    source = interrupted(other)
    (other / "out" / ".packing" / "plan.json").write_bytes(b"{")
    with pytest.raises(UsageError, match=r"plan(.|\n)*damaged(.|\n)*remove the output folder"):
        pack(open_source(source, "classes"), other / "out", size=16, samples_per_shard=2, resume=True)


def test_no_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refused)
    with pytest.raises(MachineError, match=r"/dev/shm(.|\n)*--workers 1"):
        list(in_order(abs, [1], workers=2))
