"""MOVi as TFDS writes it: videos of two frames, each of another scene of known planes."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation
from sources.pictures import png
from sources.planes import IDENTITIES, PlaneScene
from sources.planes import scene as plane_scene
from sources.trees.tfrecord import serialised, write_records

from fastssl.batch import Intrinsics

HEIGHT, WIDTH, FRAMES = 48, 64, 2
FOCAL_LENGTH, SENSOR_WIDTH = 35.0, 32.0  # those of MOVi-A
CAMERA = Intrinsics(
    fx=FOCAL_LENGTH / SENSOR_WIDTH * WIDTH, fy=FOCAL_LENGTH / SENSOR_WIDTH * WIDTH, cx=WIDTH / 2, cy=HEIGHT / 2
)
NO_NORMAL, TOO_FAR = (5, 6), (30, 20)
Features = dict[str, list[bytes] | list[float] | list[int]]


def tiff(metres: NDArray[np.float32]) -> bytes:
    data = BytesIO()
    Image.fromarray(metres).save(data, format="TIFF")
    return data.getvalue()


def looking(position: tuple[float, float, float], target: tuple[float, float, float]) -> NDArray[np.float64]:
    """Axes of a camera in a world whose z points up: its right, down and forward, one a row."""
    forward = np.subtract(target, position)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


POSES = (looking((7.5, -6.6, 5.4), (0, 0, 0)), looking((-9.0, 1.0, 0.6), (0.3, -0.2, 1.0)))


def quaternion(axes: NDArray[np.float64]) -> list[float]:
    """Of Blender's camera (x right, y up, looking along -z) with these axes; w first."""
    right, down, forward = axes
    to_world = np.stack([right, -down, -forward], axis=1)
    x, y, z, w = Rotation.from_matrix(to_world).as_quat()
    return [float(w), float(x), float(y), float(z)]


def scene(frame: int) -> PlaneScene:
    return plane_scene(CAMERA, HEIGHT, WIDTH, scale=1 + frame)


def codes(normal: NDArray[np.float64]) -> NDArray[np.uint16]:
    return ((normal.clip(-1, 1) + 1) * 65535 / 2).astype(np.uint16)


def features_of(frames: int = FRAMES, number: int = 0) -> Features:
    """A video: what `movi_*.py` of Kubric makes of the scenes that are seen in each frame."""
    scenes = [scene(frame) for frame in range(frames)]
    distances = np.stack([view.ray_length for view in scenes])
    distances[:, *TOO_FAR] = 70
    low, high = np.float32(distances.min()), np.float32(distances.max())
    worlds = [codes(view.normal @ axes) for view, axes in zip(scenes, POSES, strict=False)]
    for world in worlds:
        world[NO_NORMAL] = 32767
    segmentations = [sum((view.instance == name) * i for i, name in enumerate(IDENTITIES)) for view in scenes]
    pictures = [np.full((HEIGHT, WIDTH, 3), (10 * number, frame, 200), np.uint8) for frame in range(frames)]
    return {
        "metadata/video_name": [b"1234"],
        "metadata/num_frames": [frames],
        "metadata/depth_range": [float(low), float(high)],
        "camera/focal_length": [FOCAL_LENGTH],
        "camera/sensor_width": [SENSOR_WIDTH],
        "camera/field_of_view": [0.85755605],
        "camera/positions": [0.0] * 3 * frames,
        "camera/quaternions": [value for axes in POSES[:frames] for value in quaternion(axes)],
        "instances/bboxes/ragged_row_lengths_0": [3, 0, 200],
        "forward_flow": np.random.default_rng(0).integers(0, 65536, 500).tolist(),
        "video": [png(picture) for picture in pictures],
        "depth": [png(np.round((d - low) / (high - low) * 65535).astype(np.uint16)) for d in distances],
        "normal": [png(world) for world in worlds],
        "segmentations": [png(np.asarray(plane).astype(np.uint8)) for plane in segmentations],
    }


def write_videos(path: Path, *videos: Mapping[str, Any]) -> None:
    write_records(path, *(serialised(video) for video in videos))


TRAIN, SECOND, VALIDATION = (
    "movi_e-train.tfrecord-00000-of-00002",
    "movi_e-train.tfrecord-00001-of-00002",
    "movi_e-validation.tfrecord-00000-of-00001",
)
REFERENCE = f"{TRAIN}/00001/01"


def write_tree(folder: Path) -> Path:
    root = folder / "movi_e" / "256x256" / "1.0.0"
    root.mkdir(parents=True)
    (root / "features.json").write_text("{}")
    write_videos(root / TRAIN, features_of(), features_of(number=1))
    write_videos(root / SECOND, features_of(number=2))
    write_videos(root / VALIDATION, features_of(number=3))
    return root
