"""Values of planes against plain sums over Python's whole numbers, and adding up in any order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastssl.shards.statistics import (
    Camera,
    CameraRange,
    PlaneValues,
    Statistics,
    depth_values,
    image_values,
    mask_values,
    member_bytes,
    normal_values,
)


def images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (7, 5, 3), np.uint8),
        rng.integers(3, 99, (1, 9, 3), np.uint8),
        np.full((4000, 3, 3), 255, np.uint8),  # sums above 2^16, squares above 2^24
    ]


@pytest.mark.parametrize("number", range(3))
def test_an_image_adds_up_channel_by_channel(number: int) -> None:
    image = images()[number]
    channels = [[int(value) for value in image[..., channel].ravel()] for channel in range(3)]
    values = image_values(image)
    assert values.total == [sum(channel) for channel in channels]
    assert values.squares == [sum(value * value for value in channel) for channel in channels]
    assert (values.pixels, values.known) == (len(channels[0]),) * 2
    assert (values.min, values.max) == (min(map(min, channels)), max(map(max, channels)))


@pytest.mark.parametrize(
    "millimetres", [[0, 0, 0], [0, 1, 0], [65535, 0, 65535], [65535, 65535], [1, 2, 3], [0, 700, 40, 65535, 0, 12]]
)
def test_depth_adds_up_where_it_is_known(millimetres: list[int]) -> None:
    known = [value for value in millimetres if value > 0]
    assert depth_values(np.array([millimetres], np.uint16)) == PlaneValues(
        unit="mm",
        pixels=len(millimetres),
        known=len(known),
        total=[sum(known)],
        squares=[sum(value * value for value in known)],
        min=min(known, default=None),
        max=max(known, default=None),
    )


def test_the_largest_depths_of_a_large_plane_add_up() -> None:
    values = depth_values(np.full((600, 500), 65535, np.uint16))
    assert (values.total, values.squares) == ([300_000 * 65535], [300_000 * 65535**2])


def test_a_mask_counts_its_marked_pixels() -> None:
    mask = np.zeros((6, 4), bool)
    mask[1:3, 2] = True
    assert mask_values(mask) == PlaneValues(unit="pixel", pixels=24, known=2, total=[2], squares=[2])


def test_normals_count_where_their_codes_are_not_zero() -> None:
    codes = np.zeros((6, 4, 3), np.uint8)
    codes[1:3, 2], codes[5, 3] = (1, 255, 128), (255, 1, 1)
    assert normal_values(codes) == PlaneValues(unit="pixel", pixels=24, known=3, total=[3], squares=[3])


def sample(number: int, *, camera: bool) -> Statistics:
    intrinsics = Camera(fx=10.0 + number, fy=20.0 - number, cx=float(number % 2), cy=5.0)
    return Statistics(
        member_bytes={"jpg": member_bytes(bytes(number + 1))},
        planes={"depth": depth_values(np.array([[number, 0, 9]], np.uint16))},
        camera=CameraRange(min=intrinsics, max=intrinsics) if camera else None,
        classes=number,
    )


def test_the_order_of_adding_does_not_matter() -> None:
    parts = [sample(number, camera=number != 1) for number in range(4)]
    sums = []
    for order in permutations(parts):
        total = Statistics()
        for part in order:
            total = total.merged(part)
        sums.append(total)
    assert all(total == sums[0] for total in sums)
    (total, *_) = sums
    assert total.member_bytes["jpg"].model_dump() == {"count": 4, "total": 10, "min": 1, "max": 4}
    depth = total.planes["depth"]
    assert (depth.pixels, depth.known, depth.total, depth.min, depth.max) == (12, 7, [42], 1, 9)
    assert total.camera == CameraRange(
        min=Camera(fx=10.0, fy=17.0, cx=0.0, cy=5.0), max=Camera(fx=13.0, fy=20.0, cx=1.0, cy=5.0)
    )
    assert total.classes == 3
