from __future__ import annotations

import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fastssl.errors import ShardError
from fastssl.shards.codec import (
    TargetCodec,
    TargetLayout,
    decode_targets,
    encode_targets,
    inflate,
    pack_targets,
    quantised,
    undo_differences,
    unpack_targets,
)

MAX_ANGLE = 0.39
DEPTH_ERROR = 0.0005
CODECS: list[TargetCodec] = ["lz4", "raw"]


def planes_of(
    block: bytes, height: int, width: int, codec: TargetCodec
) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.bool_]]:
    """A decoder of its own, written from shards/README.md: millimetres, codes and contours."""
    area = height * width
    if codec == "lz4":
        block = lz4.block.decompress(block, uncompressed_size=10 * area + height)
    raw = np.frombuffer(block, np.uint8)
    depth = raw[: 2 * area].reshape(2, height, width)
    normal = raw[2 * area : 5 * area].reshape(height, width, 3)
    if codec == "lz4":
        depth, normal = np.cumsum(depth, axis=1, dtype=np.uint8), np.cumsum(normal, axis=0, dtype=np.uint8)
    edge = np.unpackbits(raw[5 * area :].reshape(height, -1), axis=1)[:, :width] == 1
    return depth[0] + 256 * depth[1].astype(np.uint16), normal, edge


def angles(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1)))


def unit_vectors(seed: int, *shape: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(*shape, 3))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


SIDES = st.integers(1, 37)


@settings(max_examples=40, deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from(CODECS))
def test_planes_come_back_within_the_error_budget(
    data: st.DataObject, height: int, width: int, codec: TargetCodec
) -> None:
    depth = data.draw(arrays.arrays(np.float32, (height, width), elements=st.floats(0, 80, width=32)))
    edge = data.draw(arrays.arrays(np.bool_, (height, width)))
    normal = unit_vectors(data.draw(st.integers(0, 99)), height, width)
    unknown = data.draw(arrays.arrays(np.bool_, (height, width)))
    normal[unknown] = 0

    block = encode_targets(depth, normal, edge, codec)
    millimetres, codes, edge_bits = planes_of(block, height, width, codec)
    depth_back, normal_back, edge_back, valid = decode_targets(block, height, width, codec)

    fits = (depth >= 0.0005) & (depth <= 65.535)
    assert (np.abs(millimetres / 1000 - depth)[fits] <= DEPTH_ERROR + 1e-12).all()
    assert (millimetres[~fits & ((depth < 0.00049) | (depth > 65.5355))] == 0).all()
    np.testing.assert_array_equal(codes.min(axis=2) >= 1, ~unknown)
    np.testing.assert_array_equal(codes.any(axis=2), ~unknown)
    assert (angles(normal, codes / 127.5 - 1)[~unknown] <= MAX_ANGLE).all()
    np.testing.assert_array_equal(edge_bits, edge)

    np.testing.assert_allclose(depth_back, millimetres / 1000, rtol=1e-6)
    assert (angles(normal, normal_back)[~unknown] <= MAX_ANGLE).all()
    np.testing.assert_allclose(np.linalg.norm(normal_back, axis=2), ~unknown, atol=1e-6)
    np.testing.assert_array_equal(edge_back, edge)
    np.testing.assert_array_equal(valid, ~unknown & (millimetres > 0))


def test_the_largest_error_of_normals() -> None:
    normal = unit_vectors(0, 400, 500)
    _, back, _, _ = decode_targets(encode_targets(np.ones((400, 500)), normal, np.zeros((400, 500), bool)), 400, 500)
    error = angles(normal, back)
    assert error.max() <= MAX_ANGLE
    assert error.mean() <= 0.171


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_normals_along_an_axis_are_known(axis: int, sign: int) -> None:
    normal = np.zeros((1, 1, 3), np.float32)
    normal[..., axis] = sign
    block = encode_targets(np.ones((1, 1)), normal, np.zeros((1, 1), bool))
    _, back, _, valid = decode_targets(block, 1, 1)
    assert valid.all()
    assert planes_of(block, 1, 1, "lz4")[1].min() >= 1
    assert angles(normal, back).item() <= MAX_ANGLE


def test_what_millimetres_cannot_hold_is_not_known() -> None:
    metres = np.array([[np.nan, np.inf, -np.inf, -1, 0, 0.0004, 0.0006, 65.535, 65.5356, 1e9]])
    depth, _, _, _ = decode_targets(encode_targets(metres, unit_vectors(0, 1, 10), np.zeros((1, 10), bool)), 1, 10)
    np.testing.assert_allclose(depth, [[0, 0, 0, 0, 0, 0, 0.001, 65.535, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_normal_that_is_not_finite_is_not_known(wrong: float) -> None:
    normal = unit_vectors(0, 1, 2)
    normal[0, 0, 1] = wrong
    _, back, _, valid = decode_targets(encode_targets(np.ones((1, 2)), normal, np.zeros((1, 2), bool)), 1, 2)
    np.testing.assert_array_equal(valid, [[False, True]])
    np.testing.assert_array_equal(back[0, 0], 0)


@pytest.mark.parametrize("codec", CODECS)
def test_whole_numbers_come_back_as_they_were(codec: TargetCodec) -> None:
    rng = np.random.default_rng(3)
    planes = quantised(rng.uniform(0, 70, (19, 29)), unit_vectors(3, 19, 29), rng.random((19, 29)) < 0.2)
    back = unpack_targets(pack_targets(planes, codec), 19, 29, codec)
    for name in ("millimetres", "normal", "edge"):
        np.testing.assert_array_equal(getattr(back, name), getattr(planes, name))
        assert getattr(back, name).dtype == getattr(planes, name).dtype


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 5)), elements=st.integers(0, 255)
    )
)
def test_undoing_differences_is_a_running_sum_down_the_rows(plane: NDArray[np.uint8]) -> None:
    expected = np.cumsum(plane, axis=-2, dtype=plane.dtype)
    undo_differences(plane)
    np.testing.assert_array_equal(plane, expected)


def test_a_batch_of_inflated_blocks_is_viewed_without_a_copy() -> None:
    layout = TargetLayout(6, 10)
    batch = np.zeros((2, layout.num_bytes), np.uint8)
    layout.depth.view(batch)[1, :, 5, 9] = 2, 1
    layout.normal.view(batch)[0, 5, 9, 2] = 7
    layout.edge.view(batch)[1, 5, 1] = 9
    assert layout.num_bytes == 6 * 10 * 5 + 6 * 2
    assert batch[1, [59, 119]].tolist() == [2, 1]
    assert batch[0, 299] == 7
    assert batch[1, 311] == 9


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_block_is_refused(codec: TargetCodec) -> None:
    layout = TargetLayout(20, 30)
    depth = np.random.default_rng(0).uniform(1, 9, (20, 30))
    block = encode_targets(depth, unit_vectors(0, 20, 30), np.zeros((20, 30), bool), codec)
    out = np.empty(layout.num_bytes, np.uint8)
    for damaged in (block[:-20], b"", b"\xff" * 50):
        with pytest.raises(ShardError, match="target block"):
            inflate(damaged, layout, out, codec)
    for other in (TargetLayout(20, 29), TargetLayout(21, 30)):
        with pytest.raises(ShardError, match="target block"):
            inflate(block, other, np.empty(other.num_bytes, np.uint8), codec)


def test_contours_outside_of_the_image_are_refused() -> None:
    block = bytearray(encode_targets(np.ones((2, 9)), unit_vectors(0, 2, 9), np.ones((2, 9), bool), "raw"))
    unpack_targets(bytes(block), 2, 9, "raw")
    block[-1] |= 0b01000000
    with pytest.raises(ShardError, match="outside of the image"):
        unpack_targets(bytes(block), 2, 9, "raw")
