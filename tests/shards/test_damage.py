"""A large folder with a few damaged images: packed, listed and trained on."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, load_batches, open_mixture
from fastssl.shards import pack, read_manifest
from fastssl.sources import FolderSource

SIDE = 72


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def zero_size() -> bytes:
    """A PNG whose header says 0 x 0 pixels."""
    png = bytearray(encoded(Image.new("RGB", (1, 1)), "PNG"))
    png[16:24] = bytes(8)
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


def garbled(content: bytes) -> bytes:
    """Other bytes in the coded pixels, as a bad block of a disk leaves them, among them a marker out of place."""
    middle = len(content) * 2 // 3
    return content[:middle] + bytes(range(40)) + b"\xff\x3f" + content[middle + 42 :]


def rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", quality=95, exif=exif)


KINDS: dict[str, tuple[Callable[[Image.Image], bytes], bool]] = {
    "cut at 10 %": (lambda image: (content := encoded(image, "JPEG"))[: len(content) // 10], False),
    "cut at 50 %": (lambda image: (content := encoded(image, "JPEG"))[: len(content) // 2], False),
    "cut at 90 %": (lambda image: (content := encoded(image, "JPEG"))[: len(content) * 9 // 10], False),
    "empty": (lambda image: b"", False),
    "text": (lambda image: b"404 not found\n", False),
    "a GIF named .jpg": (lambda image: encoded(image, "GIF"), True),
    "CMYK": (lambda image: encoded(image.convert("CMYK"), "JPEG"), True),
    "16 bits": (
        lambda image: encoded(Image.fromarray(np.array(image.convert("L")).astype(np.uint16) << 8), "PNG"),
        True,
    ),
    "no pixels": (lambda image: zero_size(), False),
    "turned by EXIF": (rotated, True),
    "damaged entropy data": (lambda image: garbled(encoded(image, "JPEG")), False),
}
"""How an image is written, and whether it can be used."""


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
def test_what_cannot_be_used_is_listed_and_nothing_else_and_training_loses_no_step(tmp_path: Path, count: int) -> None:
    """One image in a thousand, or two of each kind, is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    each = max(2, round(count / 1000 / len(KINDS)))
    places = rng.permutation(count)[: each * len(KINDS)].tolist()
    damage = dict(zip(places, [kind for kind in KINDS for _ in range(each)], strict=True))
    unusable = set()
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        pixels = np.stack([x * 3 + number, y * 3, (x + y + number) % 256], axis=-1) + rng.integers(
            0, 30, (SIDE, SIDE, 3)
        )
        image = Image.fromarray((pixels % 256).astype(np.uint8))
        name = f"photo-{number:05d}.jpg"
        write, is_usable = KINDS[damage[number]] if number in damage else (lambda image: encoded(image, "JPEG"), True)
        (folder / name).write_bytes(write(image))
        if not is_usable:
            unusable.add(name)
    pack(FolderSource(folder), tmp_path / "packed", size=SIDE, workers=2, samples_per_shard=100, max_bad=len(unusable))
    listed = [json.loads(line) for line in (tmp_path / "packed" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["reference"] for line in listed} == unusable
    assert all(line["reason"] for line in listed)
    assert read_manifest(tmp_path / "packed").samples == count - len(unusable)

    samples = open_mixture(tmp_path / "packed")
    rank_slice = RankSlice(order=samples.order(seed=0, stream=1), batch_size=50)
    settings = ViewSettings(data=DataConfig(size=67), augment=AugmentConfig(), stored=samples.image_size)
    batches = load_batches(
        samples, samples.training_plan(settings, rank_slice), LoaderOptions(device=torch.device("cpu"))
    )
    steps = -(-len(samples) // 50)
    assert sum(len(batch.keys) for batch in islice(batches, steps)) == 50 * steps
    assert batches.damaged() == []
