"""Listings in bounded memory, against `sorted` and `Path.rglob`."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.errors import DataError, UsageError
from fastssl.sources import listing
from fastssl.sources.listing import holds_image, matching_names, sorted_images, sorted_names, top_names


class Entry:
    """What `os.scandir` gives for a file or, with a slash behind its name, a folder."""

    def __init__(self, name: bytes) -> None:
        self.name = self.path = os.fsdecode(name.rstrip(b"/"))
        self._is_folder = name.endswith(b"/")

    def is_dir(self) -> bool:
        return self._is_folder

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._is_folder


class Listing:
    """A folder that exists in name only; counts what has been asked of it."""

    def __init__(self, names: Iterator[bytes]) -> None:
        self.names, self.read = names, 0

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Entry]:
        for name in self.names:
            self.read += 1
            yield Entry(name)


def pretend(monkeypatch: pytest.MonkeyPatch, names: Iterator[bytes]) -> Listing:
    folder = Listing(names)
    monkeypatch.setattr(os, "scandir", lambda path: folder)
    return folder


NAMES = st.lists(
    st.binary(min_size=1, max_size=6).filter(lambda name: not {*b"/\0"} & {*name} and not name.startswith(b".")),
    unique=True,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(NAMES, st.integers(1, 50), st.integers(1, 9))
def test_names_come_sorted_whatever_the_length_of_the_runs(names: list[bytes], run: int, block: int) -> None:
    """Any bytes that a file's name may have, such as line breaks and what is not UTF-8."""
    found = [name + b"/" if name[0] % 3 == 0 else name + b".jpg" for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "RUN", run)
        patch.setattr(listing, "_BLOCK", block)
        pretend(patch, iter([*found, b".hidden.jpg", b"notes.txt", b"jpg"]))
        assert [os.fsencode(name) for name in sorted_names(Path("folder"))] == sorted(found)


@pytest.mark.parametrize("run", [1, 2, 3, 65536])
def test_a_tree_is_listed_in_the_order_of_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int) -> None:
    monkeypatch.setattr(listing, "RUN", run)
    paths = ["a/z.jpeg", "a/b/y.JPG", "a/x.webp", "a.bmp", "a-1/q.tif", "b.PNG", "c/v.TIFF", "a/Z.jpg", "ä/o.jpg"]
    others = [".hidden.jpg", ".git/x.jpg", "notes.txt", "a/.DS_Store", "jpg", "empty/none.txt"]
    for path in paths + others:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert list(sorted_images(tmp_path)) == sorted(paths, key=os.fsencode)
    assert list(sorted_names(tmp_path)) == ["a-1/", "a.bmp", "a/", "b.PNG", "c/", "empty/", "ä/"]


def test_memory_does_not_grow_with_the_names_in_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "RUN", 1000)

    def peak(count: int) -> int:
        pretend(monkeypatch, (b"photo-%09d.jpg" % (number * 7919 % count) for number in range(count)))
        tracemalloc.start()
        assert sum(1 for _ in sorted_names(Path("folder"))) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(1_500), peak(10_000)
    assert large < small + 10 * 200_000  # a block of each run
    monkeypatch.setattr(listing, "_BLOCK", 1000)
    assert peak(10_000) < 1.6 * peak(1_500)


def test_the_temporary_file_has_no_name_and_goes_with_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[IO[bytes]] = []
    original = tempfile.TemporaryFile

    def temporary_file(*arguments: Any, **options: Any) -> IO[bytes]:
        made.append(original(*arguments, dir=tmp_path, **options))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    monkeypatch.setattr(listing, "RUN", 2)
    pretend(monkeypatch, iter([b"b.jpg", b"a.jpg", b"c.jpg"]))
    names = sorted_names(Path("folder"))
    assert next(names) == "a.jpg"
    assert not os.listdir(tmp_path)  # noqa: PTH208
    assert not made[0].closed
    names.close()
    assert made[0].closed


def test_a_full_disk_is_told_apart_from_a_bad_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> IO[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(listing, "RUN", 2)
    pretend(monkeypatch, iter([b"b.jpg", b"a.jpg", b"c.jpg"]))
    with pytest.raises(UsageError, match=r"No space left(.|\n)*TMPDIR"):
        next(sorted_names(Path("folder")))


def test_a_disk_that_fails_while_a_folder_is_listed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Iterator[bytes]:
        yield from [b"b.jpg", b"a.jpg", b"c.jpg"]
        raise OSError(5, "Input/output error")

    for run in (2, 100):
        monkeypatch.setattr(listing, "RUN", run)
        pretend(monkeypatch, failing())
        with pytest.raises(DataError, match=r"cannot be listed(.|\n)*Input/output"):
            next(sorted_names(Path("folder")))


def test_looking_for_an_image_stops_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    assert not holds_image(tmp_path)
    (tmp_path / "a" / "b" / "x.jpg").touch()
    assert holds_image(tmp_path)
    folder = pretend(monkeypatch, (b"%d.jpg" % number for number in range(10**9)))
    assert holds_image(tmp_path)
    assert folder.read == 1
    assert len(top_names(tmp_path, 5)) == 5


def test_linked_folders_are_followed_and_loops_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "x.jpg").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "twice").symlink_to(tmp_path / "disk")
    assert list(sorted_images(tmp_path / "photos")) == ["linked/x.jpg", "twice/x.jpg"]
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "disk" / "x.jpg").unlink()
    assert not holds_image(tmp_path / "photos")
    with pytest.raises(DataError, match="link"):
        list(sorted_images(tmp_path / "photos"))


def test_what_is_no_regular_file_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe would wait for ever, and a link that leads nowhere says nothing about an image."""
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "there.png").touch()
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "there.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path may be no longer than 108 bytes
        server.bind("socket.jpg")
        assert list(sorted_images(tmp_path)) == ["linked.jpg", "there.png"]
        assert matching_names(tmp_path, re.compile(r".*\.jpg")) == ["linked.jpg"]


def test_shards_below_a_folder_are_no_part_of_it(tmp_path: Path) -> None:
    for name in ("photos/1.jpg", "being/.packing/plan.json", "being/2.jpg", "packed/3.jpg", "other/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "packed" / "manifest.json").write_text('{\n  "format": "fastssl-shards",\n')
    (tmp_path / "other" / "manifest.json").write_text('{"format": "app"}')
    os.mkfifo(tmp_path / "photos" / "manifest.json")
    assert list(sorted_images(tmp_path)) == ["other/4.jpg", "photos/1.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        for look in (sorted_names, sorted_images):
            with pytest.raises(DataError, match=f"cannot be listed\n.*{path.name}"):
                list(look(path))
        with pytest.raises(DataError, match=f"cannot be listed\n.*{path.name}"):
            holds_image(path)
        assert top_names(path, 3) == []


def test_matching_names_are_those_of_the_whole_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Scene02", "Scene10", "Scene1", "Scene001", "aScene01", "Scene01"):
        (tmp_path / name).touch()
    scenes = re.compile(r"Scene[0-9]{2}")
    assert matching_names(tmp_path, scenes) == ["Scene01", "Scene02", "Scene10"]
    assert matching_names(tmp_path / "missing", scenes) == matching_names(tmp_path / "Scene01", scenes) == []

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=f"cannot be listed(.|\n)*{tmp_path.name}(.|\n)*Permission denied"):
        matching_names(tmp_path, scenes)
