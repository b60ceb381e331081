"""Records as members: contours of a stretched mask, values of the manifest, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from analytic_rooms import RoomSource, room
from numpy.typing import NDArray

from fastssl.batch import Record, Sample
from fastssl.errors import DataError
from fastssl.shards import DomainName, Manifest, pack, read_samples
from fastssl.shards import encode as encode_module
from fastssl.shards.codec import quantised
from fastssl.shards.encode import Encoder
from fastssl.shards.resample import nearest_targets


class OneRecord:
    layout = "memory"
    domain: DomainName = "synthetic"
    labelled = True
    licence = "CC0-1.0"
    subset = None
    path = Path("memory")

    def __init__(self, record: Record) -> None:
        self.record = record

    def references(self) -> Iterator[str]:
        yield "the one"

    def key(self, reference: str) -> str:
        return self.record.key

    def read(self, reference: str) -> Record:
        return self.record


def packed(record: Record, folder: Path, size: int) -> Sample:
    pack(OneRecord(record), folder, size=size)
    (sample,) = read_samples(folder)
    return sample


def edge_record(edge: NDArray[np.bool_]) -> Record:
    return replace(room(0, *edge.shape), instance=None, edge=edge)


@pytest.mark.parametrize(("height", "width", "size"), [(30, 50, 16), (20, 20, 20), (7, 11, 16), (16, 9, 8)])
def test_a_stored_contour_is_where_any_of_its_pixels_was(tmp_path: Path, height: int, width: int, size: int) -> None:
    edge = np.random.default_rng(1).random((height, width)) < 0.08
    expected = np.zeros((size, size), bool)
    for row in range(size):
        for column in range(size):
            rows = range(row * height // size, max(row * height // size + 1, (row + 1) * height // size))
            columns = range(column * width // size, max(column * width // size + 1, (column + 1) * width // size))
            expected[row, column] = any(edge[y, x] for y in rows for x in columns)
    np.testing.assert_array_equal(packed(edge_record(edge), tmp_path / "out", size).edge, expected)


@pytest.mark.parametrize("side", [3, 24, 100])
def test_targets_are_quantised_as_the_codec_does_it(side: int) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 70, (side, side + 2)).astype(np.float32)
    depth[0] = [0, np.nan, np.inf, -1, 65.5354][:side] + [0.0005] * (side + 2 - min(side, 5))
    normal = rng.normal(size=(side, side + 2, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    normal[1, 0], normal[1, 1, 2], normal[2, 0, 0], normal[2, 1], normal[2, 2] = (
        0,
        np.nan,
        np.inf,
        (-1, 0, 0),
        (0, 0, 1),
    )
    size = side + 5
    rows, columns = (((np.arange(size) + 0.5) * length / size).astype(int) for length in depth.shape)
    kept = rows[:, None], columns[None]
    expected = quantised(depth[kept], normal[kept], np.zeros((size, size), bool))
    millimetres, codes = nearest_targets(depth, normal, size)
    np.testing.assert_array_equal(millimetres, expected.millimetres)
    np.testing.assert_array_equal(codes, expected.normal)
    # A dataset that holds these very numbers gives them as they are.
    stored = quantised(depth, normal, np.zeros(depth.shape, bool))
    again = nearest_targets(stored.millimetres, stored.normal, size)
    np.testing.assert_array_equal(again[0], millimetres)
    np.testing.assert_array_equal(again[1], codes)


@pytest.mark.parametrize("code", [(0, 1, 1), (1, 0, 255), (9, 9, 0), (0, 0, 1)])
def test_codes_that_are_no_normals_are_refused(tmp_path: Path, code: tuple[int, int, int]) -> None:
    record, encode = room(0, 16, 16), encoder(tmp_path)
    codes = quantised(record.depth, record.normal, np.zeros((16, 16), bool)).normal
    assert encode.members(replace(record, normal=codes), "the one")
    codes[5, 3] = code
    with pytest.raises(DataError, match="no usable normal"):
        encode.members(replace(record, normal=codes), "the one")


def values_of(plane: NDArray[Any], known: NDArray[np.bool_]) -> dict[str, Any]:
    """Sums over Python's whole numbers."""
    values = [int(value) for value in plane[known].ravel()]
    return {"known": len(values), "total": [sum(values)], "squares": [sum(value * value for value in values)]}


def test_the_manifest_tells_the_values_that_come_out_again(tmp_path: Path) -> None:
    manifest: Manifest = pack(RoomSource(tmp_path / "rooms", 3, height=20, width=24), tmp_path / "out", size=16)
    samples = list(read_samples(tmp_path / "out"))
    planes = manifest.statistics.planes
    image = np.stack([sample.image for sample in samples]).astype(int).reshape(-1, 3)
    assert planes["image"].total == image.sum(axis=0).tolist()
    assert planes["image"].squares == (image**2).sum(axis=0).tolist()
    assert (planes["image"].min, planes["image"].max) == (image.min(), image.max())
    millimetres = np.rint(np.stack([sample.depth for sample in samples]).astype(float) * 1000).astype(int)
    faces = np.stack([sample.normal for sample in samples]).any(axis=3)
    edges = np.stack([sample.edge for sample in samples])
    for name, plane, known in (
        ("depth", millimetres, millimetres > 0),
        ("normal", faces, faces),
        ("edge", edges, edges),
    ):
        seen = planes[name].model_dump(include={"known", "total", "squares"})
        assert seen == values_of(plane, known), name
        assert planes[name].pixels == plane.size
    assert (planes["depth"].min, planes["depth"].max) == (millimetres[millimetres > 0].min(), millimetres.max())


BROKEN: dict[str, dict[str, Any]] = {
    "RGB of 8 bits": {"image": np.zeros((24, 40, 3), np.float32)},
    "RGB of 8 bits: gray": {"image": np.zeros((24, 40), np.uint8)},
    "RGB of 8 bits: empty": {"image": np.zeros((0, 40, 3), np.uint8)},
    "usable depth": {"depth": None},
    "usable depth: of another size": {"depth": np.zeros((24, 39), np.float32)},
    "usable normal": {"normal": np.zeros((24, 40), np.float32)},
    "usable edge": {"instance": None, "edge": np.zeros((40, 24), bool)},
    "usable instance": {"instance": np.zeros((40, 24), np.int32)},
    "no camera": {"camera": None},
    "class number is out of range: negative": {"class_index": -1},
    "class number is out of range: as large as no reader takes": {"class_index": 10**20},
}


def encoder(tmp_path: Path) -> Encoder:
    manifest = pack(RoomSource(tmp_path / "rooms", 1), tmp_path / "out", size=16)
    return Encoder(manifest.settings, labelled=True)


@pytest.mark.parametrize("what", BROKEN)
def test_a_record_that_cannot_be_packed_is_refused_and_named(tmp_path: Path, what: str) -> None:
    with pytest.raises(DataError, match=what.partition(":")[0]) as caught:
        encoder(tmp_path).members(replace(room(0, 24, 40), **BROKEN[what]), "the one")
    assert caught.value.where == "the one"


def test_a_jpeg_that_does_not_decode_is_never_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encoder(tmp_path)
    whole = simplejpeg.encode_jpeg
    monkeypatch.setattr(simplejpeg, "encode_jpeg", lambda *given: whole(*given)[:-100])
    with pytest.raises(DataError, match="cannot be decoded"):
        encode.members(room(0, 24, 40), "the one")


@pytest.mark.parametrize("place", [0, 700, -1])
def test_targets_that_come_out_changed_are_never_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    encode = encoder(tmp_path)
    whole = encode_module.compressed

    def changed(block: NDArray[np.uint8], *given: Any) -> bytes:
        other = block.copy()
        other[place] ^= 1
        return whole(other, *given)

    monkeypatch.setattr(encode_module, "compressed", changed)
    with pytest.raises(DataError, match="come out changed"):
        encode.members(room(0, 24, 40), "the one")


def test_targets_that_do_not_inflate_are_never_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encoder(tmp_path)
    whole = encode_module.compressed
    monkeypatch.setattr(encode_module, "compressed", lambda *given: whole(*given)[:-3])
    with pytest.raises(DataError, match="cannot be decoded"):
        encode.members(room(0, 24, 40), "the one")
