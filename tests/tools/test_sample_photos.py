"""The table of photographs, its ATTRIBUTION.md and the geometry of the crops; nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastssl.errors import DataError

ROOT = Path(__file__).parents[2]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sample_photos = _load(ROOT / "tools" / "sample_photos.py")
PHOTOS = sample_photos.read_table()


def test_every_photo_has_one_number_one_file_and_a_free_licence() -> None:
    assert len({photo.number for photo in PHOTOS}) == len({photo.sha256 for photo in PHOTOS}) == len(PHOTOS) >= 48
    for photo in PHOTOS:
        assert 0 < photo.number < 1000
        assert photo.title.strip()
        assert photo.author.strip()
        assert photo.author.lower() not in {"anonymous", "unknown", "various"}
        assert re.fullmatch(r"CC0-1\.0|CC-BY-[234]\.0|LicenseRef-Public-Domain", photo.license)
        assert re.fullmatch(r"https://\S+", photo.source)
        assert re.fullmatch(r"[0-9a-f]{64}", photo.sha256)
        assert photo.evidence


def test_training_and_held_out_photos_are_disjoint_and_enough() -> None:
    train = {(photo.number, photo.sha256) for photo in PHOTOS if photo.part == "train"}
    held_out = {(photo.number, photo.sha256) for photo in PHOTOS if photo.part == "held_out"}
    assert len(train) >= 28
    assert len(held_out) >= 20
    assert not train & held_out
    assert len(train) + len(held_out) == len(PHOTOS)


def test_attribution_names_exactly_the_photos_of_the_table() -> None:
    text = (ROOT / "shards" / "sample" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    parts = {"Training": "train", "Held out (validation and retrieval)": "held_out"}
    seen = set()
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        for row in re.finditer(
            r"^\| (\d{3}) \| \[(.+?)\]\(<(.+?)>\) \| (.+?) \| (\S+) \| `(.+?)`: `(.+?)` \|$", body, re.M
        ):
            seen.add((parts[heading], int(row[1]), *row.groups()[1:]))
    assert seen == {
        (p.part, p.number, p.title, p.source, p.author, p.license, p.package, p.member or p.path) for p in PHOTOS
    }
    assert text == sample_photos.attribution(PHOTOS)
    for photo in PHOTOS:
        assert photo.evidence in text


def _overlap(a: tuple[int, ...], b: tuple[int, ...], size: tuple[int, int]) -> float:
    """IoU by painting both boxes, as an oracle for the closed form."""
    masks = np.zeros((2, size[1], size[0]), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, (a, b), strict=True):
        mask[top:bottom, left:right] = True
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(480, 900), st.integers(480, 900), st.integers(0, 2**32), st.sampled_from([0.3, 0.45]))
def test_regions_are_squares_inside_the_photo_that_overlap_little(
    width: int, height: int, seed: int, smallest: float
) -> None:
    boxes = sample_photos.draw_regions(width, height, 3, random.Random(seed), smallest_fraction=smallest)
    assert boxes == sample_photos.draw_regions(width, height, 3, random.Random(seed), smallest_fraction=smallest)
    short = min(width, height)
    for left, top, right, bottom in boxes:
        assert right - left == bottom - top
        assert max(224, smallest * short - 1) <= right - left <= 0.7 * short + 1
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
    for first, second in ((0, 1), (0, 2), (1, 2)):
        painted = _overlap(boxes[first], boxes[second], (width, height))
        assert painted < 0.5
        assert sample_photos.intersection_over_union(boxes[first], boxes[second]) == pytest.approx(painted)


def test_regions_reach_every_side_of_the_photo() -> None:
    boxes = np.array(
        [sample_photos.draw_regions(600, 400, 1, random.Random(s), smallest_fraction=0.3)[0] for s in range(1500)]
    )
    assert boxes.min(axis=0)[:2].tolist() == [0, 0]
    assert boxes.max(axis=0)[2:].tolist() == [600, 400]
    sides = boxes[:, 2] - boxes[:, 0]
    assert (sides.min(), sides.max()) == (224, 280)


def test_crop_is_the_region_resized() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    expected = Image.fromarray(pixels[60:360, 100:400]).resize((256, 256), Image.Resampling.LANCZOS)
    crop = sample_photos.crop(Image.fromarray(pixels), (100, 60, 400, 360))
    assert np.array_equal(np.asarray(crop), np.asarray(expected))


def test_only_textured_regions_are_taken() -> None:
    pixels = np.full((600, 900, 3), 128, dtype=np.uint8)
    pixels[:, 450:] = np.random.default_rng(0).integers(0, 256, (600, 450, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    boxes = sample_photos.draw_regions(
        900,
        600,
        3,
        random.Random(0),
        smallest_fraction=0.3,
        accept=lambda box: sample_photos.is_textured(sample_photos.crop(image, box)),
    )
    noisy_fraction = [(right - max(left, 450)) / (right - left) for left, _, right, _ in boxes]
    assert min(noisy_fraction) > 0.45
    gradient = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256))
    assert not sample_photos.is_textured(Image.fromarray(np.ascontiguousarray(gradient)))


def test_a_photo_without_room_or_texture_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_photos, "TRIES", 50)
    with pytest.raises(DataError, match="too small"):
        sample_photos.draw_regions(640, 300, 3, random.Random(0), smallest_fraction=0.3)
    flat = tmp_path / "flat.png"
    Image.new("RGB", (320, 320), "skyblue").save(flat)
    with pytest.raises(DataError, match=rf"too few textured regions\n  where: {PHOTOS[0].number:03d}"):
        sample_photos.write_crops(PHOTOS[0], flat.read_bytes(), tmp_path)


def test_a_resource_file_gives_the_picture_with_the_right_hash(tmp_path: Path) -> None:
    for color in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), color).save(tmp_path / f"{color}.webp")
    files = [(tmp_path / f"{color}.webp").read_bytes() for color in ("red", "green", "blue")]
    (tmp_path / "all.rcc").write_bytes(b"qres" + b"\0\0\0\1RIFF".join([b"", *files]) + b"RIFF")
    photo = replace(
        PHOTOS[0], path="all.rcc", member="green.webp", sha256=hashlib.sha256(files[1]).hexdigest(), package="p"
    )
    assert sample_photos.photo_bytes(photo, tmp_path) == files[1]
    with pytest.raises(DataError, match=r"not in its package\n  where: p: all.rcc green.webp"):
        sample_photos.photo_bytes(replace(photo, sha256="0" * 64), tmp_path)
    with pytest.raises(DataError, match="no such file"):
        sample_photos.photo_bytes(replace(photo, path="none.rcc"), tmp_path)


def test_crops_are_written_under_the_photo_number_and_are_the_same_again(tmp_path: Path) -> None:
    photo = next(photo for photo in PHOTOS if photo.part == "held_out")
    source = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)).save(source)
    for run in ("a", "b"):
        sample_photos.write_crops(photo, source.read_bytes(), tmp_path / run)
    number = f"{photo.number:03d}"
    names = [f"real_val/{number}/{number}_{i}.png" for i in range(3)]
    names += [f"retrieval/{number}/{number}_{i}.png" for i in range(6)]
    assert sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.png")) == names
    contents = [(tmp_path / "a" / name).read_bytes() for name in names]
    assert contents == [(tmp_path / "b" / name).read_bytes() for name in names]
    assert len(set(contents)) == len(contents)
