"""Hypersim as its archives unpack, in a smaller size, with the two tables."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from sources.planes import PlaneScene, scene

from fastssl.batch import Intrinsics
from fastssl.sources.hypersim import CAMERAS, SPLIT

HEIGHT, WIDTH = 48, 64
REFERENCE = "ai_001_001/cam_00/0007"
TAN_30 = float(np.tan(np.pi / 6))
USUAL = Intrinsics(fx=WIDTH / 2 / TAN_30, fy=WIDTH / 2 / TAN_30, cx=WIDTH / 2, cy=HEIGHT / 2)
USUAL_MATRIX = np.array([[TAN_30, 0, 0], [0, 0.75 * TAN_30, 0], [0, 0, -1]])
# From Y down and Z forward to y up and z backward, and back.
TO_GL = np.diag([1.0, -1.0, -1.0])
UNKNOWN = (slice(30, 36), slice(2, 12))


def write_array(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=values, compression="gzip", compression_opts=9)


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write_lenses(folder: Path, lenses: dict[str, NDArray[np.float64] | list[float]]) -> None:
    columns = ["scene_name", "settings_output_img_width", "camera_physical_white_balance"]
    columns += [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    rows = [[name, 1024.0, "Color(1, 1, 1)", *np.ravel(matrix)] for name, matrix in lenses.items()]
    write_table(folder / CAMERAS, columns, rows)


def write_split(folder: Path, rows: list[list[Any]]) -> None:
    columns = ["scene_name", "camera_name", "frame_id", "included_in_public_release", "exclude_reason"]
    write_table(folder / SPLIT, [*columns, "split_partition_name"], rows)


def files(folder: Path, reference: str = REFERENCE) -> dict[str, Path]:
    name, camera, frame = reference.split("/")
    images = folder / name / "images"
    planes = {
        plane: images / f"scene_{camera}_geometry_hdf5" / f"frame.{frame}.{plane}.hdf5"
        for plane in ("depth_meters", "normal_cam", "semantic_instance")
    }
    return {"color": images / f"scene_{camera}_final_hdf5" / f"frame.{frame}.color.hdf5", **planes}


def write_frame(
    folder: Path, reference: str, view: PlaneScene, *, turned: NDArray[np.float64] = TO_GL, turn_normals: bool = True
) -> None:
    """A frame as the dataset stores it. `turned` takes the view's frame into that of the camera's table."""
    rng = np.random.default_rng(0)
    distance, normal = view.ray_length.copy(), view.normal @ (turned.T if turn_normals else np.eye(3))
    distance[UNKNOWN] = np.nan
    normal[UNKNOWN] = np.nan
    paths = files(folder, reference)
    write_array(paths["color"], rng.uniform(0, 3, (HEIGHT, WIDTH, 3)).astype(np.float16))
    write_array(paths["depth_meters"], distance.astype(np.float16))
    write_array(paths["normal_cam"], normal.astype(np.float16))
    write_array(paths["semantic_instance"], view.instance.astype(np.int16))


def write_frames(folder: Path, *references: str) -> PlaneScene:
    """Frames of the usual lens."""
    view = scene(USUAL, HEIGHT, WIDTH)
    for reference in references:
        write_frame(folder, reference, view)
    write_lenses(folder, dict.fromkeys(("ai_001_001", "ai_001_002", "ai_002_001"), USUAL_MATRIX))
    return view


def write_tree(folder: Path) -> Path:
    write_frames(folder, REFERENCE, "ai_001_002/cam_00/0001", "ai_002_001/cam_01/0010")
    write_split(
        folder,
        [
            ["ai_001_001", "cam_00", 7, True, "", "train"],
            ["ai_001_002", "cam_00", 1, True, "", "train"],
            ["ai_002_001", "cam_01", 10, True, "", "val"],
        ],
    )
    return folder
