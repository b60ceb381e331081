"""Virtual KITTI 2 in a smaller size, which its file of intrinsics allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sources.pictures import save
from sources.planes import IDENTITIES, PlaneScene
from sources.planes import scene as plane_scene

from fastssl.batch import Intrinsics

HEIGHT, WIDTH = 48, 64
CAMERA = Intrinsics(fx=74.0, fy=72.0, cx=32.5, cy=23.5)
OTHER_CAMERA = Intrinsics(fx=30.0, fy=31.0, cx=32.0, cy=24.0)
REFERENCE = "Scene01/15-deg-left/Camera_1/00000"
SKY = (slice(0, 4), slice(0, 6))
Planes = dict[str, NDArray[np.generic]]


def scene(camera: Intrinsics = CAMERA, height: int = HEIGHT, width: int = WIDTH) -> PlaneScene:
    """12 to 32 m away, as streets are."""
    return plane_scene(camera, height, width, scale=8)


def centimetres(metres: NDArray[np.float64], *, sky: bool = True) -> NDArray[np.uint16]:
    stored = np.round(metres * 100).astype(np.uint16)
    if sky:
        stored[SKY] = 65535
    return stored


def planes_of(view: PlaneScene, *, sky: bool = True) -> Planes:
    """What a frame's files hold. Numbers of vehicles are small; neighbours differ by one."""
    tracks = np.select([view.instance == name for name in IDENTITIES], range(4)).astype(np.uint8)
    return {"rgb": np.full((*view.z.shape, 3), 90, np.uint8), "depth": centimetres(view.z, sky=sky), "tracks": tracks}


def files(root: Path, reference: str = REFERENCE) -> dict[str, Path]:
    scene_name, variation, camera, number = reference.split("/")
    frames = root / scene_name / variation / "frames"
    return {
        "rgb": frames / "rgb" / camera / f"rgb_{number}.jpg",
        "depth": frames / "depth" / camera / f"depth_{number}.png",
        "tracks": frames / "instanceSegmentation" / camera / f"instancegt_{number}.png",
    }


def write_frame(root: Path, planes: Planes, reference: str = REFERENCE) -> None:
    for name, path in files(root, reference).items():
        image = Image.fromarray(planes[name])
        if name == "tracks":
            image.putpalette([value for number in range(256) for value in (number * 37 % 256, number, 255 - number)])
        save(path, image)


def write_intrinsics(folder: Path, *cameras: Intrinsics) -> Path:
    """The first pixel's centre is at 0, so half a pixel is missing. The right camera is the second line of a frame."""
    lines = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
    for frame in range(3):
        for number, camera in enumerate(cameras):
            lines.append(f"{frame} {number} {camera.fx} {camera.fy} {camera.cx - 0.5} {camera.cy - 0.5}")
    path = folder / "intrinsic.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tree(folder: Path) -> Path:
    for reference in (REFERENCE, "Scene01/15-deg-left/Camera_1/00002"):
        write_frame(folder, planes_of(scene()), reference)
    write_intrinsics(folder / "Scene01" / "15-deg-left", OTHER_CAMERA, CAMERA)
    return folder
