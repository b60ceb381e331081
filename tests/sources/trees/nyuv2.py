"""The labelled frames of NYU Depth v2 as MATLAB 7.3 writes them: HDF5 with reversed axes, at the dataset's own size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat
from sources.planes import PlaneScene, scene

from fastssl.batch import Intrinsics
from fastssl.sources.nyuv2 import FRAMES, SPLITS

# The toolbox's camera for pixels that count from 1, brought to centres at index + 0.5.
FULL = Intrinsics(fx=518.858, fy=519.470, cx=325.582 - 0.5, cy=253.736 - 0.5)
# `mask(45:471, 41:601)` in MATLAB: its region of 427 rows and 561 columns, whose `size` the toolbox gives.
REGION = (slice(45 - 1, 471), slice(41 - 1, 601))
CUT = replace(FULL, cx=FULL.cx - 40, cy=FULL.cy - 44)
UNKNOWN = (slice(100, 104), slice(200, 210))
# The scene's, as (label, instance): two that differ in the instance alone, and two whose labels end in the same byte.
IDENTITIES = {299: (1, 7), 300: (1, 8), 301: (300, 8), 45: (44, 8)}


@cache
def full_view() -> PlaneScene:
    """Not to be written to."""
    return scene(FULL, 480, 640)


def cut(view: PlaneScene) -> PlaneScene:
    return PlaneScene(CUT, view.z[REGION], view.ray_length[REGION], view.normal[REGION], view.instance[REGION])


def frame(number: int = 0) -> dict[str, NDArray[Any]]:
    view = full_view()
    y, x = np.mgrid[:480, :640]
    depth = view.z.astype(np.float32)
    depth[UNKNOWN] = 0
    pairs = np.zeros((*view.z.shape, 2), np.int64)
    for identity, pair in IDENTITIES.items():
        pairs[view.instance == identity] = pair
    return {
        "images": np.stack([x // 3, y // 2, (x // 8 + y // 8 + number) % 256], axis=-1).astype(np.uint8),
        "depths": depth,
        "labels": pairs[..., 0].astype(np.uint16),
        "instances": pairs[..., 1].astype(np.uint8),
    }


def reversed_axes(frames: list[NDArray[Any]]) -> NDArray[Any]:
    """(H, W[, 3]) each to what h5py shows of MATLAB's (H, W[, 3], N)."""
    return np.stack(frames, axis=-1).T


def write_frames(path: Path, *frames: dict[str, NDArray[Any]]) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in ("images", "depths", "labels", "instances"):
            values = reversed_axes([planes[name] for planes in frames])
            file.create_dataset(
                name, data=values, chunks=(1, *values.shape[1:]), compression="gzip", compression_opts=1
            )
        file.create_dataset("rawDepths", data=np.zeros((len(frames), 640, 480), np.float32), compression="gzip")
    with path.open("r+b") as file:  # MATLAB's own header, in HDF5's user block
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")


def write_tree(folder: Path) -> Path:
    """Three frames of one room."""
    folder.mkdir(parents=True, exist_ok=True)
    write_frames(folder / FRAMES, *(frame(number) for number in range(3)))
    savemat(folder / SPLITS, {"trainNdxs": np.array([[3], [1]], np.uint16), "testNdxs": np.array([[2]], np.uint16)})
    return folder
