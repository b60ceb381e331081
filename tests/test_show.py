"""Sheets read back pixel by pixel, their words as they were drawn, and histograms against NumPy."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_folder import served
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError, MachineError, UsageError
from fastssl.shards import DomainName, ShardSet, pack, read_samples
from fastssl.show import COUNTED, Values, drawn, find, sample_facts, show

SIDE = 128
"""Of the packed squares, which are shown as large as they are."""
GRAYS = (40, 90, 140, 190)
NEAR, FAR = (252, 253, 191), (0, 0, 4)
TOWARDS = (128, 128, 255)
"""Of a normal towards the camera: 127.5 (1, 1, 2), rounded."""


class Plain:
    """Squares of one gray at one depth, facing the camera; in the first one the left half is not known."""

    layout, licence, subset, path = "plain", "CC0-1.0", None, Path("plain")

    def __init__(self, domain: DomainName, count: int = len(GRAYS)) -> None:
        self.domain: DomainName = domain
        self.labelled = domain == "synthetic"
        self.count = count

    def references(self) -> Iterator[str]:
        return map(str, range(self.count))

    def key(self, reference: str) -> str:
        return f"plain_{int(reference):03d}"

    def read(self, reference: str) -> Record:
        number = int(reference)
        image = np.full((SIDE, SIDE, 3), GRAYS[number % len(GRAYS)], np.uint8)
        if not self.labelled:
            return Record(key=self.key(reference), image=image, class_index=7 * number)
        depth = np.full((SIDE, SIDE), 1 + number, np.float32)
        normal = np.zeros((SIDE, SIDE, 3), np.float32)
        normal[..., 2] = -1
        instance = np.zeros((SIDE, SIDE), np.int32)
        if number == 0:
            depth[:, : SIDE // 2], normal[:, : SIDE // 2] = 0, 0
        if number == 1:
            instance[: SIDE // 2] = 1  # one row of contours
        camera = Intrinsics(fx=100, fy=100, cx=SIDE / 2, cy=SIDE / 2)
        return Record(
            key=self.key(reference), image=image, depth=depth, normal=normal, instance=instance, camera=camera
        )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples in two shards."""
    out = tmp_path_factory.mktemp("shown") / "labelled"
    pack(Plain("synthetic"), out, size=SIDE, samples_per_shard=3, jpeg_quality=100)
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "photos"
    pack(Plain("real"), out, size=SIDE, samples_per_shard=3, jpeg_quality=100)
    return out


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is written on a picture, in order."""
    written = list[str]()
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        written.append(text)
        draw(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_in_chart = Text.draw

    def text_in_chart(self: Text, *args: Any, **kwargs: Any) -> None:
        written.append(self.get_text())
        draw_in_chart(self, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", text_in_chart)
    return written


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def square_of(sheet: NDArray[np.uint8], gray: int) -> tuple[int, int]:
    """Top and left of the one square of this gray."""
    inside = (np.abs(sheet.astype(int) - gray) <= 1).all(axis=2)
    # Letters have grays of all kinds; a run of SIDE pixels they have not.
    runs = np.lib.stride_tricks.sliding_window_view(inside, SIDE, axis=1).all(axis=2)
    ((top, left), *others) = np.argwhere(runs).tolist()
    assert {column for _, column in others} == {left}
    assert [row for row, _ in others] == list(range(top + 1, top + SIDE))
    return top, left


def test_planes_stand_beside_their_image_in_their_colours(labelled: Path, tmp_path: Path) -> None:
    show(labelled, tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    tops = []
    for number, gray in enumerate(GRAYS):
        top, left = square_of(sheet, gray)
        tops.append(top)
        planes = [sheet[top : top + SIDE, left + k * (SIDE + 4) :][:, :SIDE] for k in range(5)]
        _, depth, normal, contours, valid = planes
        known = slice(SIDE // 2 if number == 0 else 0, SIDE)
        expected = {0: NEAR, 3: FAR}.get(number)
        assert len(np.unique(depth[:, known].reshape(-1, 3), axis=0)) == 1
        if expected is not None:
            assert tuple(depth[0, -1]) == expected
        assert np.abs(normal[:, known].astype(int) - TOWARDS).max() <= 1
        assert (valid[:, known] == valid[0, -1]).all()
        assert tuple(valid[0, -1]) not in {(120,) * 3, (215,) * 3}
        marked = (contours == 0).all(axis=2)
        assert (contours[~marked] == 255).all()
        assert np.flatnonzero(marked.any(axis=1)).tolist() == ([SIDE // 2 - 1] if number == 1 else [])
        for plane in (depth, normal, valid):
            unknown = plane[:, : known.start]
            assert {tuple(colour) for colour in unknown.reshape(-1, 3)} <= {(120,) * 3, (215,) * 3}
    assert tops == sorted(tops)
    assert len(set(np.diff(tops))) == 1


def test_depth_colours_are_in_the_order_of_depth(labelled: Path, tmp_path: Path) -> None:
    show(labelled, tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    places = [square_of(sheet, gray) for gray in GRAYS]
    lightness = [int(sheet[top, left + 2 * SIDE].sum()) for top, left in places]
    assert lightness == sorted(lightness, reverse=True)


def test_rows_name_keys_and_facts(labelled: Path, tmp_path: Path, texts: list[str]) -> None:
    show(labelled, tmp_path / "sheet.png")
    keys = [text for text in texts if text.startswith("plain_0")]
    assert keys == [f"plain_{number:03d}" for number in range(4)]
    facts = " ".join(texts)
    assert "shard 000000.tar" in facts
    assert "depth 1.00 to 1.00 m" in facts
    assert "valid 50.0% of" in facts
    assert "contours 0.8% of" in facts  # one row of 128
    assert {"image", "depth", "normal", "contours", "valid", "not known"} <= set(texts)
    assert "plain: all 4 samples" in texts
    assert {"1 m", "2 m", "4 m"} <= set(texts)  # the scale of depth


def test_photos_stand_in_rows_with_key_and_class(photos: Path, tmp_path: Path, texts: list[str]) -> None:
    shown = show(photos, tmp_path / "sheet.png", count=3)
    sheet = pixels(tmp_path / "sheet.png")
    places = [square_of(sheet, GRAYS[int(one.key[-3:])]) for one in shown.samples]
    assert len({top for top, _ in places}) == 1
    assert [b - a for (_, a), (_, b) in pairwise(places)] == [SIDE + 10, SIDE + 10]
    for one in shown.samples:
        assert one.key in texts
        assert any(text.startswith(f"class {7 * int(one.key[-3:])}, ") for text in texts)
    assert "depth" not in texts


def test_one_key_alone_is_large(labelled: Path, tmp_path: Path, texts: list[str]) -> None:
    shown = show(labelled, tmp_path / "one.png", key="plain_001")
    assert shown.pictures == [tmp_path / "one.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png"]
    inside = (np.abs(pixels(tmp_path / "one.png").astype(int) - GRAYS[1]) <= 1).all(axis=2)
    assert np.flatnonzero(inside.sum(axis=1) >= 384).size == 384
    assert any("plain_001" in text for text in texts)
    assert "depth 2.00 to 2.00 m, median 2.00 m" in texts
    assert "shard 000000.tar" in texts
    assert "contours 0.8% of pixels" in texts


def test_one_photo_alone(photos: Path, tmp_path: Path, texts: list[str]) -> None:
    show(photos, tmp_path / "one.png", key="plain_003")
    assert "class 21" in texts
    assert not [text for text in texts if "depth" in text or "valid" in text]


def test_facts_are_those_of_the_arrays(labelled: Path) -> None:
    shards = ShardSet(labelled)
    for index, sample in enumerate(read_samples(labelled)):
        facts = sample_facts(shards, index, sample)
        assert (facts.key, facts.shard, facts.class_index) == (sample.key, f"{index // 3:06d}.tar", None)
        assert abs(facts.brightness - GRAYS[index]) <= 1
        assert facts.depth_m == (1 + index,) * 3
        assert facts.valid == (0.5 if index == 0 else 1)
        assert facts.contours == (1 / SIDE if index == 1 else 0)
        listed = (labelled / facts.shard.replace(".tar", ".idx")).read_text()
        assert re.search(rf"jpg \d+ {facts.member_bytes['jpg']} {sample.key}.jpg", listed)
        assert re.search(rf"labels.lz4 \d+ {facts.member_bytes['labels.lz4']} {sample.key}.labels.lz4", listed)


def test_a_sample_without_any_known_depth(tmp_path: Path) -> None:
    class Blind(Plain):
        def read(self, reference: str) -> Record:
            record = super().read(reference)
            assert record.depth is not None
            record.depth[:] = 0
            return record

    pack(Blind("synthetic", 1), tmp_path / "out", size=SIDE)
    shown = show(tmp_path / "out", tmp_path / "sheet.png")
    assert shown.samples[0].depth_m is None
    assert "no depth known" in shown.samples[0].lines()


def test_unknown_pixels_of_small_pictures_are_striped_at_the_size_that_is_shown(tmp_path: Path) -> None:
    pack(Plain("synthetic", 1), tmp_path / "out", size=16, jpeg_quality=100)
    show(tmp_path / "out", tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    top, left = square_of(sheet, GRAYS[0])
    depth = sheet[top : top + 128, left + 132 :][:, :128]
    gray = [(depth == level).all(axis=2) for level in (120, 215)]
    assert (gray[0] | gray[1])[:, :64].all()
    assert not (gray[0] | gray[1])[:, 64:].any()
    assert gray[0][:, :64].mean() == pytest.approx(0.5)
    assert not (gray[0][:, 4:64] & gray[0][:, :60]).any()


# Histograms


def test_values_are_counted_as_numpy_counts_them(labelled: Path) -> None:
    shards, values = ShardSet(labelled), Values()
    samples = list(read_samples(labelled))
    for index, sample in enumerate(samples):
        values.add(sample, sample_facts(shards, index, sample))
    grays = np.concatenate([np.rint(sample.image.mean(axis=2)).ravel() for sample in samples])
    assert values.gray.tolist() == np.histogram(grays, 256, (0, 256))[0].tolist()
    assert np.flatnonzero(values.millimetres).tolist() == [1000, 2000, 3000, 4000]
    assert values.millimetres[[1000, 2000]].tolist() == [SIDE * SIDE // 2, SIDE * SIDE]
    assert values.directions.sum() == SIDE * SIDE * 7 // 2
    assert np.argwhere(values.directions).tolist() == [[32, 32]]  # all in the middle of the disc


@pytest.mark.parametrize(
    ("normal", "row", "column"), [((0, -1, 0), 0, 32), ((0, 1, 0), 63, 32), ((1, 0, 0), 32, 63), ((-1, 0, 0), 32, 0)]
)
def test_normals_are_counted_where_they_point(
    labelled: Path, normal: tuple[int, int, int], row: int, column: int
) -> None:
    (sample, *_), values, shards = list(read_samples(labelled)), Values(), ShardSet(labelled)
    assert sample.normal is not None
    sample.normal[:, SIDE // 2 :] = normal
    values.add(sample, sample_facts(shards, 0, sample))
    assert np.argwhere(values.directions).tolist() == [[row, column]]


def test_histograms_have_titles_units_and_ends(labelled: Path, tmp_path: Path, texts: list[str]) -> None:
    shown = show(labelled, tmp_path / "sheet.png")
    assert shown.pictures == [tmp_path / "sheet.png", tmp_path / "sheet_histograms.png"]
    assert pixels(shown.pictures[1]).shape[1] > 1000
    assert {"Depth", "m, logarithmic axis", "% of pixels", "Normals", "up", "Gray levels", "kB"} <= set(texts)
    assert "median 3 m; 98 % from 1 to 4 m" in texts
    assert "median 100 %; from 50 to 100 %" in texts
    assert "plain: histograms of all 4 samples" in texts
    texts.clear()
    show(labelled, tmp_path / "sheet.png", count=2, seed=5)
    assert "plain: 2 of 4 samples, drawn with seed 5" in texts


def test_histograms_of_photos_have_no_labels(photos: Path, tmp_path: Path, texts: list[str]) -> None:
    show(photos, tmp_path / "sheet.png")
    assert not {"Depth", "Normals", "Size of each label block"} & set(texts)
    assert {"Class of each sample", "Size of each image"} <= set(texts)


# Which samples


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    count=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_samples_are_drawn_from_all_shards_alike(sizes: list[int], count: int, seed: int) -> None:
    chosen = drawn(sizes, count, seed)
    assert chosen == sorted(set(chosen)) == drawn(sizes, count, seed)
    assert len(chosen) == min(count, sum(sizes))
    assert 0 <= chosen[0] <= chosen[-1] < sum(sizes)
    ends = np.cumsum(sizes)
    quota = np.bincount(np.searchsorted(ends, chosen, side="right"), minlength=len(sizes))
    # A shard gets fewer than another one by two or more only if it has no more.
    for number, size in zip(quota, sizes, strict=True):
        assert number == size or number >= quota.max() - 1


def test_every_sample_of_a_shard_has_the_same_chance() -> None:
    hits = np.bincount([index for seed in range(600) for index in drawn([6, 3], 3, seed)], minlength=9)
    # Half of the draws take two of the first six, half take one: 1/4; the other three: 1/2.
    assert np.abs(hits[:6] - 150).max() < 45
    assert np.abs(hits[6:] - 300).max() < 55


def test_a_seed_gives_the_same_pictures(labelled: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        show(labelled, tmp_path / f"{name}.png", count=2, seed=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a_histograms.png").read_bytes() == (tmp_path / "b_histograms.png").read_bytes()
    keys = {tuple(one.key for one in show(labelled, tmp_path / "c.png", count=2, seed=s).samples) for s in range(6)}
    # The second shard has one sample, the first one has three.
    assert keys == {(f"plain_{number:03d}", "plain_003") for number in range(3)}


def test_progress_is_told(labelled: Path, tmp_path: Path) -> None:
    seen = list[tuple[int, int]]()
    show(labelled, tmp_path / "sheet.png", count=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert COUNTED >= 4


@pytest.mark.parametrize(
    ("typed", "first"),
    [("plain_01", "plain_001"), ("Plain_002", "plain_002"), ("plane_003", "plain_003"), ("", "plain")],
)
def test_an_unknown_key_is_answered_by_the_nearest(labelled: Path, tmp_path: Path, typed: str, first: str) -> None:
    assert [find(ShardSet(labelled), f"plain_{number:03d}") for number in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="no such key") as error:
        show(labelled, tmp_path / "one.png", key=typed)
    assert error.value.seen == typed
    assert str(error.value.expected).startswith(first)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_shown_is_refused(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        show(labelled, tmp_path / "sheet.jpg")
    with pytest.raises(UsageError, match="no such folder"):
        show(labelled, tmp_path / "nowhere" / "sheet.png")
    with pytest.raises(UsageError, match="--count"):
        show(labelled, tmp_path / "sheet.png", count=0)
    with pytest.raises(DataError, match="no such folder"):
        show(tmp_path / "nowhere", tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_neither_torch_nor_dali_is_loaded() -> None:
    code = "import sys, fastssl.show; sys.exit(any(n in sys.modules for n in ('torch', 'nvidia.dali')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_sample_of_each_kind_is_drawn(tmp_path: Path) -> None:
    """The least that a dataset can hold."""
    domains: tuple[DomainName, ...] = ("synthetic", "real")
    for domain in domains:
        pack(Plain(domain, 1), tmp_path / domain, size=16)
        shown = show(tmp_path / domain, tmp_path / f"{domain}.png")
        assert len(shown.samples) == 1
        assert all(pixels(path).size for path in shown.pictures)


def test_an_address_is_shown_as_its_folder_is(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "cache"))
    show(labelled, tmp_path / "local.png")
    with served(labelled) as address:
        show(address, tmp_path / "remote.png")
    show(f"file://{labelled}", tmp_path / "file.png")
    for name in ("remote", "file"):
        for suffix in ("", "_histograms"):
            assert (pixels(tmp_path / f"{name}{suffix}.png") == pixels(tmp_path / f"local{suffix}.png")).all()


def test_a_full_disk_is_the_machine_s_fault(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fastssl.show.write_picture", full)
    with pytest.raises(MachineError, match=r"disk is full(.|\n)*sheet\.png"):
        show(labelled, tmp_path / "sheet.png")
