"""Images that are no JPEGs: the very pixels that were packed, and what DALI makes of lossless images of its own."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import graph_forms
import numpy as np
import pytest
import torch
from graph_forms import FORMS, SIZE, batches_of
from late_reading import KEPT, begin, calm, late
from numpy.typing import NDArray
from patterns import SIDE, coded_record
from PIL import Image

import fastssl
from fastssl.batch import IMAGE_MEAN
from fastssl.errors import DataError
from fastssl.loader import LoaderOptions, Mixture, calibration, open_mixture
from fastssl.loader.graph import build_decoder
from fastssl.shards import JPEG, Allocate, ShardSet, StoredSample

CPU = torch.device("cpu")


class Pngs:
    """A codec that DALI's graph decodes, and Pillow where there is no graph; another row of the table would look so."""

    member, lossless, in_graph = "image.lz4", True, True

    def check_header(self, member: object, size: object) -> None:
        pass

    def are_plain(self, members: Sequence[object], size: object) -> list[bool]:
        return [True] * len(members)

    def decode_windows(
        self, members: Sequence[NDArray[np.uint8]], size: object, corners: Any, out: NDArray[np.uint8]
    ) -> None:
        for member, (top, left), window in zip(members, corners, out, strict=True):
            image = np.asarray(Image.open(io.BytesIO(member.tobytes())))
            window[:] = image[top : top + len(window), left : left + len(window)]


def _new(num_bytes: int) -> NDArray[np.uint8]:
    return np.empty(num_bytes, np.uint8)


class AsPngs(Mixture):
    """A dataset whose images come as PNGs of the same pixels, made by Pillow."""

    @property
    def image_codec(self) -> Any:
        return Pngs()

    def read(self, index: int, names: Sequence[str], allocate: Allocate) -> StoredSample:
        stored = super().read(index, names, allocate)
        png = io.BytesIO()
        Image.fromarray(coded_record(index).image).save(png, "PNG")
        return stored._replace(members=stored.members | {"image.lz4": np.frombuffer(png.getvalue(), np.uint8)})

    def checksum(self, index: int, name: str) -> int:
        return zlib.crc32(self.read(index, [name], _new).members[name].tobytes())

    def read_many(self, indices: Any, names: Sequence[str], memory: Any) -> tuple[list[StoredSample | None], int]:
        return [None] * len(indices), 0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        "cut",
        "cut, gray",
        "cut, gray, colours and blur",
        "resized",
        "resized, gray",
        "resized, colours and blur",
        "aspect",
        "evaluation",
        "evaluation, cut",
        "whole photos",
    ],
)
def test_batches_are_those_of_lossless_images_that_dali_decodes(
    coded_pixels: Path, monkeypatch: pytest.MonkeyPatch, form: str, half: bool
) -> None:
    """Bit for bit, in every form of the graph; and of those that Pillow decodes, where there is no graph."""
    got = batches_of(FORMS[form], coded_pixels, CPU, half=half)
    monkeypatch.setattr(graph_forms, "open_mixture", lambda path: AsPngs([ShardSet(path)]))
    expected = batches_of(FORMS[form], coded_pixels, CPU, half=half)
    assert len({batch.image.sum().item() for batch in got}) > 1
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys == theirs.keys
        assert ours.image.dtype == (torch.float16 if half else torch.float32)
        assert torch.equal(ours.image, theirs.image)
        assert ours.image.is_contiguous(memory_format=torch.channels_last)
        if not FORMS[form].whole_photos:
            assert torch.equal(ours.depth, theirs.depth)


def seen(number: int, rows: slice, columns: slice) -> NDArray[np.float32]:
    """A window of a pattern as a network takes it, (3, S, S)."""
    pixels = coded_record(number).image[rows, columns].astype(np.float32)
    return (pixels * np.float32(1 / 255) - IMAGE_MEAN).transpose(2, 0, 1)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_window_that_is_cut_out_has_the_packed_pixels(coded_pixels: Path, flip: float) -> None:
    """By NumPy, at the place that the depth's numbers tell."""
    corners = set()
    window = (SIZE / SIDE, SIZE / SIDE)
    with fastssl.load(coded_pixels, batch_size=4, size=SIZE, window=window, flip=flip, device="cpu") as batches:
        for batch in islice(batches, 4):
            for i, key in enumerate(batch.keys):
                number = np.rint(batch.depth[i, 0].numpy().astype(np.float64) * 1000).astype(int) - 1
                last = number[-1, 0 if flip else -1]
                top, left = last // SIDE - SIZE + 1, last % SIDE - SIZE + 1
                corners.add((top, left))
                expected = seen(int(key[-3:]), slice(top, top + SIZE), slice(left, left + SIZE))
                np.testing.assert_array_equal(batch.image[i].numpy(), expected[..., ::-1] if flip else expected)
    assert len(corners) > 10


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", [(115 / SIDE, 115 / SIDE), (0.6, 1.0)])
def test_batches_are_the_same_whenever_they_are_dropped(
    coded_pixels: Path, window: tuple[float, float], kept: int
) -> None:
    options = LoaderOptions(device=CPU, threads=2)
    expected = calm(begin(coded_pixels, options, targets=False, window=window), CPU)
    assert torch.equal(late(begin(coded_pixels, options, targets=False, window=window), CPU, kept), expected)


def test_datasets_of_different_codecs_are_not_mixed(coded_pixels: Path, coded_synthetic: Path) -> None:
    with pytest.raises(DataError, match="datasets with different codecs of images cannot be mixed") as raised:
        open_mixture({str(coded_synthetic): 1.0, str(coded_pixels): 1.0})
    assert (raised.value.where, raised.value.seen) == (str(coded_pixels), "lz4")


def test_no_jpeg_engine_is_tried_for_images_that_are_no_jpegs(coded_pixels: Path) -> None:
    options = LoaderOptions(device=torch.device("cuda"), threads=2)
    found = calibration.calibrated(
        open_mixture(coded_pixels), lambda: pytest.fail("a plan is made"), options, load_on="gpu"
    )
    assert (found.load, found.is_safe, found.seconds) == (0.0, True, {})


def test_a_cpu_decodes_jpegs_to_the_pixels_that_dali_gives() -> None:
    """Of real photos, whole and in part: where no graph decodes them, batches are what they were with one."""
    shards = ShardSet(Path(__file__).parents[2] / "shards" / "sample" / "real_val")
    jpegs, size = [shards.member(number, JPEG) for number in range(12)], shards.image_size
    pipeline = build_decoder(lambda: jpegs, batch_size=len(jpegs), threads=1)
    (decoded,) = pipeline.run()
    corners = np.array([(number, 30) for number in range(len(jpegs))])
    windows = np.empty((len(jpegs), 67, 67, 3), np.uint8)
    shards.image_codec.decode_windows(jpegs, size, corners, windows)
    for number, jpeg in enumerate(jpegs):
        expected = np.array(decoded[number])
        np.testing.assert_array_equal(shards.image_codec.decode(jpeg, size), expected)
        np.testing.assert_array_equal(windows[number], expected[number : number + 67, 30 : 30 + 67])
