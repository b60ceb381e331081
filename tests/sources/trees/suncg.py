"""SUNCG's renderings: the tree of Ren and Lee's code in a fifth of the release's width and height, and the release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sources.pictures import png, save
from sources.planes import PlaneScene, scene

from fastssl.batch import Intrinsics
from fastssl.sources.suncg import CAMERA

ROOM = "eaf9f8af4043ea42a223ec1276ac1546"
OTHER_ROOM = "9cbb425a14f4e039052437ba68079ace"
FRAME = f"{ROOM}/000005"
HOLE = np.s_[4:9, 40:52]
"""Nothing is seen there."""
SMALL = Intrinsics(fx=517.97 / 5, fy=517.97 / 5, cx=64.0, cy=48.0)
HEIGHT, WIDTH = 96, 128


def photo(room: PlaneScene) -> NDArray[np.uint8]:
    return np.stack([room.z * 40, room.z * 20, np.full_like(room.z, 90)], axis=-1).astype(np.uint8)


def millimetres(room: PlaneScene) -> NDArray[np.uint16]:
    depth = np.rint(room.z * 1000).astype(np.uint16)
    depth[HOLE] = 0
    return depth


def right_forward_up(normal: NDArray[np.floating]) -> NDArray[np.floating]:
    """The release's frame: red to the right, green forward, blue up."""
    return np.stack([normal[..., 0], normal[..., 2], -normal[..., 1]], axis=-1)


def away_right_up_forward(normal: NDArray[np.floating]) -> NDArray[np.floating]:
    """The frame of the authors' script for SceneNet: away from the camera, in axes right, up, forward."""
    return -np.stack([normal[..., 0], -normal[..., 1], normal[..., 2]], axis=-1)


def boundary(instance: NDArray[np.integer]) -> NDArray[np.uint8]:
    """As `seg2bdry` of the release's tools: 255 where a pixel and its lower and right neighbours are of several."""
    padded = np.pad(instance, ((0, 1), (0, 1)), mode="edge")
    block = np.stack([padded[:-1, :-1], padded[1:, :-1], padded[:-1, 1:], padded[1:, 1:]])
    return np.where(block.min(axis=0) < block.max(axis=0), 255, 0).astype(np.uint8)


def small_room() -> PlaneScene:
    return scene(SMALL, HEIGHT, WIDTH)


def write_small(
    root: Path,
    room: PlaneScene,
    frame: Callable[[Any], Any] = right_forward_up,
    *,
    one_bit: bool = False,
    name: str = FRAME,
) -> None:
    normal = np.rint((frame(room.normal) + 1) * 127.5).astype(np.uint8)
    normal[HOLE] = 128
    planes = {
        "mlt": photo(room),
        "depth": millimetres(room),
        "normal": normal,
        "edge": room.edge if one_bit else room.edge.astype(np.uint8) * 200,
    }
    for plane, pixels in planes.items():
        save(root / plane / f"{name}_256.png", pixels)


def full_room() -> PlaneScene:
    return scene(CAMERA, 480, 640)


def write_release(
    root: Path, room: PlaneScene, *, as_released: bool = True, nodes: bool = True, name: str = FRAME
) -> None:
    def file(archive: str, ending: str) -> Path:
        return (root / f"{archive}_v2" if as_released else root) / f"{name}_{ending}.png"

    codes = np.minimum((right_forward_up(room.normal) + 1) * 65535 / 2, 65535).astype(np.uint16)
    valid = np.full(room.z.shape, 255, np.uint8)
    codes[HOLE], valid[HOLE] = 0, 0
    valid[-3:, -3:] = 0
    save(file("mlt", "mlt"), photo(room))
    save(file("depth", "depth"), millimetres(room))
    save(file("normal", "valid"), valid)
    file("normal", "norm_camera").write_bytes(png(codes))
    save(file("boundary", "instance_boundary"), boundary(room.instance))
    if nodes:
        save(file("node", "node"), room.instance.astype(np.uint16))


def write_small_tree(folder: Path) -> Path:
    for name in (FRAME, f"{OTHER_ROOM}/000011"):
        write_small(folder, small_room(), name=name)
    return folder


def write_release_tree(folder: Path) -> Path:
    for name in (FRAME, f"{OTHER_ROOM}/000011"):
        write_release(folder, full_room(), name=name)
    return folder
