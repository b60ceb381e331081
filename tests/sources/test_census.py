"""Every entry of a folder is packed, quarantined, or passed over with a reason: nothing is lost without a word."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastssl.shards import read_manifest, read_samples

FORMATS = {
    **dict.fromkeys(("jpg", "jpeg", "JPG", "jpe", "jfif"), "JPEG"),
    "png": "PNG",
    "PNG": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "gif": "GIF",
}
OTHERS = ["txt", "json", "csv", "xml", "npy", "exr", "mp4", "zip", "tar.gz", "cr2", "svg", "pdf", "DS_Store", "bak~"]


def encoded(kind: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (20, 16), (200, 30, 60)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One entry of every kind, side by side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for ending, kind in FORMATS.items():
        (folder / f"image_{ending}.{ending}").write_bytes(encoded(kind))
    for ending in OTHERS:
        (folder / f"other.{ending}").write_bytes(b"nothing to see")
    (folder / "no_ending").write_bytes(encoded("PNG"))
    (folder / ".hidden.jpg").write_bytes(encoded("JPEG"))
    (folder / ".git").mkdir()
    (folder / "empty").mkdir()
    (folder / "damaged.jpg").write_bytes(encoded("JPEG")[:200])
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "linked.png").symlink_to(folder / "image_png.png")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / "begun" / ".packing").mkdir(parents=True)
    (folder / "begun" / "photo.jpg").write_bytes(encoded("JPEG"))
    (folder / "packed").mkdir()
    (folder / "packed" / "manifest.json").write_text('{"format": "fastssl-shards"}')
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(encoded("JPEG"))
    (folder / "\U0001f3e0.jpg").write_bytes(encoded("JPEG"))
    os.mkfifo(folder / "pipe.jpg")
    monkeypatch.chdir(folder)  # a socket's path may be no longer than 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    return folder


def shard(source: Path, out: Path, *options: object) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "fastssl", "shard", source, out, "--size", "16", "--json", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=120)
    (facts,) = json.loads(done.stdout).values()
    return facts, done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_every_entry_is_accounted_for(tree: Path, tmp_path: Path, workers: int) -> None:
    entries = list(os.scandir(tree))
    assert len({Path(entry.name).suffix for entry in entries}) >= 25
    facts, told = shard(tree, tmp_path / "out", "--workers", workers)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.passed_over is not None
    passed = {reason: entry.count for reason, entry in manifest.passed_over.items()}
    assert manifest.samples + manifest.quarantined + sum(passed.values()) == len(entries)
    endings = Counter(f"files ending in {Path(name).suffix.lower()}" for name in (f"x.{ending}" for ending in OTHERS))
    del endings["files ending in .bak~"]
    assert passed == {
        **endings,
        "files with other endings": 1,
        "files without an ending": 1,
        "hidden files and folders": 2,
        "empty folders": 1,
        "links that lead nowhere": 2,
        "folders of packed shards": 1,
        "folders that a packing writes into, or was interrupted in": 1,
        "special files (pipes, sockets, devices)": 2,
    }
    assert manifest.samples == len(FORMATS) + 3  # linked.png, and two odd names
    assert facts["passed_over"] == {reason: entry.model_dump() for reason, entry in manifest.passed_over.items()}
    for words in (
        "2 special files (pipes, sockets, devices): pipe.jpg, socket.jpg",
        "1 files ending in .exr: other.exr",
    ):
        assert words in told
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    quarantined = [json.loads(line)["reference"] for line in lines]
    assert quarantined == ["damaged.jpg", "text.jpg", "zero.png"]
    assert len(list(read_samples(tmp_path / "out"))) == manifest.samples


def test_names_that_are_not_utf8_are_escaped_wherever_they_are_told(tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    source.mkdir()
    for name in (b"/ok.jpg", b"/na\xefve.jpg"):
        Path(os.fsdecode(os.fsencode(source) + name)).write_bytes(encoded("JPEG"))
    for name in (b"/bad\xff.jpg", b"/note\xfe.txt"):
        Path(os.fsdecode(os.fsencode(source) + name)).write_bytes(b"x")
    _, told = shard(source, tmp_path / "out")
    assert "note\\xfe.txt" in told
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.samples, manifest.quarantined, manifest.source) == (2, 1, "caf\\xe9")
    assert "bad\\\\xff.jpg" in (tmp_path / "out" / "quarantine.jsonl").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "fastssl", "shard", source, str(tmp_path / "other"), "--max-bad", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "bad\\xff.jpg" in done.stderr


def test_the_output_below_its_source_is_no_part_of_it(tree: Path) -> None:
    _, told = shard(tree, tree / "out")
    before = read_manifest(tree / "out")
    again, _ = shard(tree, tree / "out", "--resume")
    assert "folders of packed shards: packed\n" in told
    assert again["samples"] == before.samples
