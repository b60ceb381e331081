"""Oracle: the stored planes, seen pixel by pixel in NumPy and doubles; and the CPU and the GPU's way each other's.

The GPU's way runs on the CPU here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fastssl.config import AugmentConfig, DataConfig
from fastssl.errors import ShardError
from fastssl.loader.order import mixed_order
from fastssl.loader.plan import RankSlice, Views, ViewSettings, training_views
from fastssl.loader.target_kernel import Filters
from fastssl.loader.targets import ThreadedTargets, targets_on_device
from fastssl.shards import TARGETS, ShardSet, TargetLayout
from fastssl.shards.codec import StoredTargets, TargetCodec, inflate, pack_targets

FIELDS = ("depth", "normal", "edge", "valid", "stored_edge_fraction")


def random_planes(seed: int, height: int, width: int) -> StoredTargets:
    """Noise, with pixels whose depth or normal is not known."""
    rng = np.random.default_rng(seed)
    known = rng.random((height, width, 1)) < 0.8
    return StoredTargets(
        millimetres=rng.choice([0, 1, 255, 256, 65535, 4321], (height, width)).astype(np.uint16),
        normal=np.where(known, rng.integers(1, 256, (height, width, 3)), 0).astype(np.uint8),
        edge=rng.random((height, width)) < 0.3,
    )


def window(top: int, left: int, height: int, width: int, flip: bool, num: int = 1) -> Views:
    return Views(
        position=np.arange(num),
        top=np.full(num, top),
        left=np.full(num, left),
        height=np.full(num, height),
        width=np.full(num, width),
        flip=np.full(num, flip),
        channel=np.zeros(num, np.int64),
        colour=np.zeros((num, 4), np.float32),
        blur=np.zeros(num, np.float32),
    )


def blended(codes: NDArray[np.float64], known: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
    """Bilinear interpolation of the window's known normals, pixel by pixel; zero where they cancel out."""
    height, width = known.shape
    normal = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) * height / size - 0.5, (j + 0.5) * width / size - 0.5
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                    at = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
                    fraction = (1 - abs(y - row)) * (1 - abs(x - column))
                    normal[i, j] += fraction * known[at] * (codes[at] / 127.5 - 1)
    length = np.linalg.norm(normal, axis=2, keepdims=True)
    return np.where(length > 2e-3, normal / np.maximum(length, 1e-9), 0)


def seen_through(planes: StoredTargets, views: Views, size: int, filters: Filters) -> dict[str, NDArray[np.floating]]:
    """The definition: the window cut out, each plane by its filter, then the mirror."""
    top, left, height, width = (int(getattr(views, name)[0]) for name in ("top", "left", "height", "width"))
    area = np.s_[top : top + height, left : left + width]
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in (height, width))
    millimetres = planes.millimetres[area][rows][:, columns]
    codes = planes.normal[area][rows][:, columns].astype(np.float64)
    known = codes.any(axis=2)
    normal = codes / 127.5 - 1
    normal[~known] = 1
    normal *= (known / np.linalg.norm(normal, axis=2))[..., None]
    edge = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height // size, j * width // size
            cell = planes.edge[area][y : max((i + 1) * height // size, y + 1), x : max((j + 1) * width // size, x + 1)]
            edge[i, j] = cell.mean() if filters.edge_area else cell.any()
    if filters.linear_normals:
        stored = planes.normal[area].astype(np.float64)
        linear = blended(stored, stored.any(axis=2), size)
        normal = np.where(known[..., None] & linear.any(axis=2, keepdims=True), linear, normal)
    if views.flip[0]:
        millimetres, normal, edge = millimetres[:, ::-1], normal[:, ::-1] * [-1, 1, 1], edge[:, ::-1]
        known = known[:, ::-1]
    return {
        "depth": millimetres[None] / 1000,
        "normal": normal.transpose(2, 0, 1),
        "edge": edge[None],
        "valid": (known & (millimetres > 0))[None],
        "stored_edge_fraction": np.array(planes.edge.mean()),
    }


def assert_same(targets: dict[str, Tensor], expected: dict[str, Tensor], normals: float = 3e-7) -> None:
    for name in ("depth", "edge", "valid"):
        assert torch.equal(targets[name], expected[name]), name
    torch.testing.assert_close(targets["normal"], expected["normal"], rtol=0, atol=normals)
    torch.testing.assert_close(targets["stored_edge_fraction"], expected["stored_edge_fraction"], rtol=0, atol=3e-7)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, Views]:
    """Size of the stored image, of the output, and a window that may touch any border."""
    stored_height, stored_width = draw(st.integers(1, 34)), draw(st.integers(1, 34))
    size = draw(st.integers(1, 37))
    height, width = draw(st.integers(1, stored_height)), draw(st.integers(1, stored_width))
    if draw(st.booleans()):  # a run as it is, the usual case
        size = width
    top, left = draw(st.integers(0, stored_height - height)), draw(st.integers(0, stored_width - width))
    return stored_height, stored_width, size, window(top, left, height, width, draw(st.booleans()))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 99), st.sampled_from(["lz4", "raw"]), st.booleans(), st.booleans())
def test_both_ways_give_what_the_definition_says(
    case: tuple[int, int, int, Views], seed: int, codec: TargetCodec, linear: bool, area: bool
) -> None:
    filters = Filters(linear_normals=linear, edge_area=area)
    height, width, size, views = case
    layout = TargetLayout(height, width)
    planes = random_planes(seed, height, width)
    block = np.frombuffer(pack_targets(planes, codec), np.uint8)
    with ThreadPoolExecutor(1) as pool:
        targets = ThreadedTargets(layout, size, pool, 1, codec, filters).submit([block], views).result()
    inflated = np.empty((1, layout.num_bytes), np.uint8)
    inflate(block, layout, inflated[0], codec)
    on_device = targets_on_device(torch.from_numpy(inflated), layout, views, size, codec, filters)
    expected = seen_through(planes, views, size, filters)
    assert set(targets) == set(on_device) == set(FIELDS)
    for name in FIELDS:
        # A blend of nearly opposite normals magnifies the last bit.
        tolerance = 1e-4 if linear and name == "normal" else 2e-7
        np.testing.assert_allclose(
            targets[name][0].numpy(), expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )
        assert targets[name].dtype == on_device[name].dtype
    assert_same(on_device, targets, normals=1e-4 if linear else 3e-7)


@pytest.mark.parametrize("window", [(0.5, 1.0), (67 / 96, 67 / 96), (0.2, 0.6)])
@pytest.mark.parametrize("size", [67, 99])
def test_device_and_threads_give_the_same_batches(
    coded_synthetic: Path, pool: ThreadPoolExecutor, window: tuple[float, float], size: int
) -> None:
    shards = ShardSet(coded_synthetic)
    layout = TargetLayout(*shards.image_size)
    num = len(shards)
    blocks = [shards.member(i, TARGETS) for i in range(num)]
    inflated = np.empty((num, layout.num_bytes), np.uint8)
    for block, out in zip(blocks, inflated, strict=True):
        inflate(block, layout, out)
    threads = ThreadedTargets(layout, size, pool, 3)
    rank_slice = RankSlice(order=mixed_order([[num]], [1], seed=1, stream=0), batch_size=num)
    settings = ViewSettings(
        data=DataConfig(size=size, window=window), augment=AugmentConfig(), stored=shards.image_size
    )
    for step in range(3):
        views = training_views(settings, rank_slice, step * num)
        expected = threads.submit(blocks, views).result()
        targets = targets_on_device(torch.from_numpy(inflated), layout, views, size)
        assert_same(targets, expected)


def packed(seed: int, num: int, side: int = 40) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(pack_targets(random_planes(seed + i, side, side)), np.uint8) for i in range(num)]


def test_a_batch_keeps_its_memory_until_nothing_of_it_is_left(pool: ThreadPoolExecutor) -> None:
    threads = ThreadedTargets(TargetLayout(40, 40), 30, pool, 2)
    views = window(3, 4, 30, 30, flip=True, num=5)

    def batch(seed: int) -> dict[str, Tensor]:
        return threads.submit(packed(seed, 5), views).result()

    first = batch(0)
    kept, copies = first["normal"][1:3], {name: field.clone() for name, field in first.items()}
    used = {first["depth"].data_ptr()}
    del first
    for seed in range(10, 16):
        later = batch(seed)
        used.add(later["depth"].data_ptr())
        assert torch.equal(kept, copies["normal"][1:3])
        del later
    gc.collect()
    assert len(used) == 2, "the later batches share the memory of one"
    del kept
    gc.collect()
    both = batch(0), batch(20)
    assert {one["depth"].data_ptr() for one in both} == used
    for name, field in both[0].items():
        assert torch.equal(field, copies[name])


def test_a_larger_batch_than_before_gets_more_memory(pool: ThreadPoolExecutor) -> None:
    threads = ThreadedTargets(TargetLayout(40, 40), 30, pool, 2)
    for num in (2, 7, 1):
        blocks = packed(num, num)
        targets = threads.submit(blocks, window(3, 4, 30, 30, flip=False, num=num)).result()
        assert targets["normal"].shape == (num, 3, 30, 30)
        one = threads.submit(blocks[-1:], window(3, 4, 30, 30, flip=False)).result()
        for name in FIELDS:
            assert torch.equal(targets[name][-1:], one[name])


@pytest.mark.parametrize("codec", ["lz4", "raw"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_damaged_block_is_an_error_of_its_batch_alone(
    pool: ThreadPoolExecutor, codec: TargetCodec, threads: int
) -> None:
    targets = ThreadedTargets(TargetLayout(40, 40), 30, pool, threads, codec)
    blocks = [np.frombuffer(pack_targets(random_planes(i, 40, 40), codec), np.uint8) for i in range(5)]
    views = window(3, 4, 30, 30, flip=False, num=5)
    other = np.frombuffer(pack_targets(random_planes(0, 39, 40), codec), np.uint8)
    for wrong in (blocks[3][:-7], np.full(90, 255, np.uint8), np.zeros(0, np.uint8), other):
        pending = targets.submit([*blocks[:3], wrong, blocks[4]], views)
        with pytest.raises(ShardError, match="target block"):
            pending.result()
        assert isinstance(pending.error(), ShardError)
        assert targets.submit(blocks, views).error() is None
