"""A miniature of NYU Depth v2 with true normals: walls known in closed form, whose colours tell their direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from sources.trees.nyuv2 import FULL, write_frames

from fastssl.sources.nyuv2 import FRAMES, SPLITS

TRAIN, TEST = (5, 2, 1), (4, 3)
"""Frames of the splits, by MATLAB's numbers."""
COUNT = len(TRAIN) + len(TEST)


def room(number: int) -> dict[str, NDArray[Any]]:
    """Sixteen walls, four by four: image, depth, normals that face the camera, and where these are valid.

    Normals are (480, 640, 3), X right, Y down, Z forward. No wall is more than 45 degrees off the image's plane, so
    that every pixel sees it from the front. Some pixels have no valid normal, and some no depth.
    """
    rng = np.random.default_rng(number)
    columns, rows = np.meshgrid(np.arange(640) + 0.5, np.arange(480) + 0.5)
    rays = np.stack([(columns - FULL.cx) / FULL.fx, (rows - FULL.cy) / FULL.fy, np.ones_like(rows)], axis=-1)
    tilt, turn = np.radians(rng.uniform(10, 45, (4, 4, 1))), rng.uniform(0, 2 * np.pi, (4, 4, 1))
    walls = np.concatenate([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), -np.cos(tilt)], axis=2)
    normal = walls[rows.astype(int) // 120, columns.astype(int) // 160]
    depth = (3 * normal[..., 2] / (rays * normal).sum(axis=2)).astype(np.float32)
    valid = np.ones((480, 640), bool)
    valid[60 + 10 * number : 110 + 10 * number, 100:300] = False
    depth[300:310] = 0
    image = np.rint(127.5 + 127 * normal * [1, 1, 0.5]).astype(np.uint8)
    return {"image": image, "depth": depth, "normal": normal, "valid": valid}


def write_rooms(folder: Path) -> Path:
    """All files: the frames and splits in `folder`; normals that point away from the camera in `folder/truth`, and as
    PNGs, those that do not count in black, in `folder/pngs`."""
    rooms = [room(number) for number in range(1, COUNT + 1)]
    for name in ("truth", "pngs"):
        (folder / name).mkdir(parents=True)
    empty = np.zeros((480, 640), np.uint16)
    planes = [
        {"images": one["image"], "depths": one["depth"], "labels": empty, "instances": empty.astype(np.uint8)}
        for one in rooms
    ]
    write_frames(folder / FRAMES, *planes)
    write_splits(folder)
    for number, one in enumerate(rooms, start=1):
        write_mat(folder / "truth" / f"nm_{number:06d}.mat", -one["normal"], one["valid"])
        codes = np.rint((1 - one["normal"]) / 2 * 255) * one["valid"][..., None]
        Image.fromarray(codes.astype(np.uint8)).save(folder / "pngs" / f"{number:06d}_norm.png", compress_level=1)
    return folder


def write_mat(path: Path, normal: NDArray[np.float64], valid: NDArray[Any]) -> None:
    nx, ny, nz = np.moveaxis(normal, 2, 0)
    savemat(path, {"nx": nx, "ny": ny, "nz": nz, "depthValid": valid.astype(np.uint8)})


def write_splits(folder: Path, train: tuple[int, ...] = TRAIN, test: tuple[int, ...] = TEST) -> None:
    columns = {"trainNdxs": train, "testNdxs": test}
    savemat(folder / SPLITS, {name: np.array(numbers, np.uint16)[:, None] for name, numbers in columns.items()})
