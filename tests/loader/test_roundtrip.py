"""Any records, packed and read back by three readers: ours, `webdataset` with the format page's recipe, and the loader.

The oracle is the record itself.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lz4.block
import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import IMAGE_MEAN, Intrinsics, Record
from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, ViewSettings, evaluation_plan, load_batches, open_mixture
from fastssl.shards import DomainName, pack, read_samples

SIZE = 35
DEPTH_MM, NORMAL_DEGREES = 0.5, 0.4
"""The codec's error budget."""


class Memory:
    """Records as a source."""

    layout, licence, path, subset, labelled = "memory", "CC0-1.0", Path("memory"), None, True
    domain: DomainName = "synthetic"

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def references(self) -> Iterator[str]:
        return map(str, range(len(self.records)))

    def key(self, reference: str) -> str:
        return self.records[int(reference)].key

    def read(self, reference: str) -> Record:
        return self.records[int(reference)]


def record(number: int, height: int, width: int, seed: int) -> Record:
    rng = np.random.default_rng(seed)
    depth = rng.choice([0.0, 0.0004, 70.0, np.nan, np.inf, -1.0], (height, width))
    depth = np.where(rng.random((height, width)) < 0.8, rng.uniform(0.001, 65.5, (height, width)), depth)
    normal = rng.normal(size=(height, width, 3))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    normal[rng.random((height, width)) < 0.2] = 0
    smooth = Image.fromarray(rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)).resize((width, height))
    return Record(
        key=f"sample_{number}",
        image=np.array(smooth),
        depth=depth.astype(np.float32),
        normal=normal.astype(np.float32),
        instance=rng.integers(-1, 400, (height, width)).astype(np.int32),
        camera=Intrinsics(fx=30.0, fy=31.0, cx=width / 2, cy=height / 2),
    )


RECORDS = st.lists(st.tuples(st.integers(3, 50), st.integers(3, 50), st.integers(0, 10**6)), min_size=1, max_size=4)


def nearest(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """The stored pixel that holds the centre of each packed one, in whole numbers."""
    rows, columns = ([(2 * i + 1) * side // (2 * SIZE) for i in range(SIZE)] for side in plane.shape[:2])
    return plane[rows][:, columns]


def check(
    truth: Record,
    depth: NDArray[np.floating],
    normal: NDArray[np.floating],
    edge: NDArray[np.bool_],
    valid: NDArray[np.bool_],
) -> None:
    metres, vectors = nearest(truth.depth), nearest(truth.normal)
    fits = np.isfinite(metres) & (metres >= 0.0005) & (metres < 65.5355)
    assert np.abs(depth - np.where(fits, metres, 0)).max() <= DEPTH_MM / 1000 + 1e-5  # a float at 60 m
    known = vectors.any(axis=2)
    assert np.array_equal(normal.any(axis=2), known)
    assert np.array_equal(valid, known & fits)
    if known.any():
        cosine = (normal * vectors).sum(axis=2)[known]
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < NORMAL_DEGREES
        assert np.allclose(np.linalg.norm(normal[known], axis=1), 1, atol=1e-5)
    instance = np.pad(nearest(truth.instance), (0, 1), mode="edge")
    assert np.array_equal(edge, (instance[:-1, :-1] != instance[:-1, 1:]) | (instance[:-1, :-1] != instance[1:, :-1]))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@settings(max_examples=15, deadline=None)
@given(RECORDS)
def test_any_records_come_back_within_the_codec_s_error_budget(shapes: list[tuple[int, int, int]]) -> None:
    records = [record(number, *shape) for number, shape in enumerate(shapes)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "packed"
        pack(Memory(records), out, size=SIZE, samples_per_shard=2, jpeg_quality=95)
        ours = list(read_samples(out))
        others = list(webdataset.WebDataset([str(path) for path in sorted(out.glob("*.tar"))], shardshuffle=False))
        samples = open_mixture(out)
        views = ViewSettings(
            data=DataConfig(size=SIZE, gray="off"), augment=AugmentConfig(), stored=samples.image_size, whole=True
        )
        options = LoaderOptions(device=torch.device("cpu"), threads=1)
        (batch,) = load_batches(samples, evaluation_plan(views, len(samples), 4), options)
    assert [sample.key for sample in ours] == [truth.key for truth in records] == list(batch.keys)
    for i, (truth, sample, other) in enumerate(zip(records, ours, others, strict=True)):
        check(truth, sample.depth, sample.normal, sample.edge, sample.valid)
        decoded = np.array(Image.open(io.BytesIO(other["jpg"])))
        assert np.array_equal(decoded, sample.image)
        check(truth, *by_the_format_page(other["labels.lz4"]))
        assert np.abs(batch.image[i].numpy().transpose(1, 2, 0) + IMAGE_MEAN - decoded / 255).max() < 1e-6
        normal = batch.normal[i].numpy().transpose(1, 2, 0)
        check(truth, batch.depth[i, 0].numpy(), normal, batch.edge[i, 0].numpy() > 0, batch.valid[i, 0].numpy())


def by_the_format_page(block: bytes) -> tuple[NDArray[np.floating], ...]:
    """Depth, normal, edge and valid as shards/README.md says, in NumPy alone."""
    area, line = SIZE * SIZE, -(-SIZE // 8)
    raw = np.frombuffer(lz4.block.decompress(block, uncompressed_size=5 * area + SIZE * line), np.uint8)
    low, high = raw[: 2 * area].reshape(2, SIZE, SIZE).cumsum(axis=1, dtype=np.uint8)
    codes = raw[2 * area : 5 * area].reshape(SIZE, SIZE, 3).cumsum(axis=0, dtype=np.uint8)
    depth = (low + 256.0 * high) / 1000
    known = codes.any(axis=2)
    normal = (codes / 127.5 - 1) * known[..., None]
    normal /= np.where(known, np.linalg.norm(normal, axis=2), 1)[..., None]
    edge = np.unpackbits(raw[5 * area :].reshape(SIZE, line), axis=1, count=SIZE).astype(bool)
    return depth, normal, edge, known & (depth > 0)
