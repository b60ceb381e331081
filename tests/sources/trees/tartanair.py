"""TartanAir's left camera at the dataset's own size: 640 x 480, a field of view of 90 degrees about the middle."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sources.pictures import save
from sources.planes import IDENTITIES, PlaneScene
from sources.planes import scene as plane_scene

from fastssl.batch import Intrinsics

HEIGHT, WIDTH = 480, 640
CAMERA = Intrinsics(fx=320.0, fy=320.0, cx=320.0, cy=240.0)
REFERENCE = "abandonedfactory/Easy/P000/000000"
SKY, NOT_A_NUMBER = (slice(0, 30), slice(0, 40)), (300, 500)
Planes = dict[str, NDArray[Any]]


@cache
def scene() -> PlaneScene:
    """Not to be written to."""
    return plane_scene(CAMERA, HEIGHT, WIDTH, scale=3)


def visible_scene() -> PlaneScene:
    """What can be known of it."""
    view = replace(scene(), z=scene().z.copy(), normal=scene().normal.copy())
    for unknown in (SKY, NOT_A_NUMBER):
        view.z[unknown], view.normal[unknown] = 0, 0
    return view


def planes() -> Planes:
    """What an image's files hold; AirSim numbers meshes up to 255."""
    depth = scene().z.astype(np.float32)
    depth[SKY] = 10_000
    depth[NOT_A_NUMBER] = np.nan
    meshes = np.select([scene().instance == name for name in IDENTITIES], (254, 255, 253, 0)).astype(np.uint8)
    return {"image": np.full((HEIGHT, WIDTH, 3), (10, 20, 200), np.uint8), "depth": depth, "seg": meshes}


def wall_planes(view: PlaneScene) -> Planes:
    """A wall as genuine files hold it: float32 arrays, all of whose values are those of float16."""
    depth = view.z.astype(np.float16).astype(np.float32)
    colour, mesh = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.full((HEIGHT, WIDTH), 7, np.uint8)
    return {"image": colour, "depth": depth, "seg": mesh}


def files(root: Path, reference: str = REFERENCE) -> dict[str, Path]:
    trajectory, _, number = reference.rpartition("/")
    return {
        "image": root / trajectory / "image_left" / f"{number}_left.png",
        "depth": root / trajectory / "depth_left" / f"{number}_left_depth.npy",
        "seg": root / trajectory / "seg_left" / f"{number}_left_seg.npy",
    }


def write_image(root: Path, planes: Planes, reference: str = REFERENCE) -> None:
    paths = files(root, reference)
    save(paths["image"], planes["image"])
    for name in ("depth", "seg"):
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        np.save(paths[name], planes[name])


def write_tree(folder: Path) -> Path:
    for reference in (REFERENCE, "abandonedfactory/Hard/P001/000007"):
        write_image(folder, planes(), reference)
    return folder
