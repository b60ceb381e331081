"""Structured3D's perspective renderings, in a smaller size but with the dataset's field of view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sources.pictures import save
from sources.planes import PlaneScene, scene

from fastssl.batch import Intrinsics

HEIGHT, WIDTH = 54, 96
HALF_X, HALF_Y = 0.698132, 0.440993  # half angles, as in the dataset: 40 degrees, and square pixels at 16:9
CAMERA = Intrinsics(fx=WIDTH / 2 / np.tan(HALF_X), fy=HEIGHT / 2 / np.tan(HALF_Y), cx=WIDTH / 2, cy=HEIGHT / 2)
POSE = f"-1200.5 3400.25 1500 0.6 0.8 0 0 0 1 {HALF_X} {HALF_Y} 1"
REFERENCE = "scene_00000/485142/0"
UNKNOWN = (slice(40, 46), slice(70, 80))


def folder_of(folder: Path, reference: str = REFERENCE) -> Path:
    name, room, position = reference.split("/")
    return folder / name / "2D_rendering" / room / "perspective" / "full" / position


def codes_of(normal: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(right, down, forward) as red = forward, green = up, blue = left, in codes 128 (1 + n)."""
    channels = np.stack([normal[:, :, 2], -normal[:, :, 1], -normal[:, :, 0]], axis=2)
    return np.clip(np.rint(128 * (1 + channels)), 0, 255).astype(np.uint8)


def write_rendering(folder: Path, reference: str, view: PlaneScene) -> None:
    at = folder_of(folder, reference)
    depth, codes = np.rint(1000 * view.z).astype(np.uint16), codes_of(view.normal)
    depth[UNKNOWN] = 0
    codes[UNKNOWN] = 127
    stripes = np.random.default_rng(0).integers(0, 256, (1, codes.shape[1], 3), dtype=np.uint8)
    save(at / "rgb_rawlight.png", np.repeat(stripes, len(codes), axis=0))
    save(at / "depth.png", depth)
    save(at / "normal.png", codes)
    save(at / "instance.png", view.instance.astype(np.uint16))
    (at / "camera_pose.txt").write_text(f"{POSE}\n")
    (at / "semantic.png").write_bytes(b"")  # not read


def write_tree(folder: Path) -> Path:
    for reference in (REFERENCE, "scene_00000/485142/1", "scene_03300/7/0"):
        write_rendering(folder, reference, scene(CAMERA, HEIGHT, WIDTH))
    return folder
