"""SceneNet RGB-D as its archives unpack, with frames of a scene of known planes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sources.pictures import save
from sources.planes import PlaneScene, scene

from fastssl.sources.scenenet import CAMERA, HEIGHT, WIDTH

HOLE = np.s_[20:26, 100:110]
"""A window: nothing is hit, and the identity is the background's."""


def room_with_window() -> PlaneScene:
    room = scene(CAMERA, HEIGHT, WIDTH)
    room.instance[HOLE] = 0
    return room


def ray_millimetres(room: PlaneScene, hole: bool) -> NDArray[np.uint16]:
    millimetres = np.rint(room.ray_length * 1000).astype(np.uint16)
    if hole:
        millimetres[HOLE] = 0
    return millimetres


def write_frame(trajectory: Path, number: int, room: PlaneScene, *, hole: bool = True) -> None:
    photo = np.stack([room.z * 4, room.z * 2, np.full_like(room.z, 90)], axis=-1).astype(np.uint8)
    save(trajectory / "photo" / f"{number}.jpg", photo)
    save(trajectory / "depth" / f"{number}.png", ray_millimetres(room, hole))
    save(trajectory / "instance" / f"{number}.png", room.instance.astype(np.uint16))


def write_tree(folder: Path) -> Path:
    room = room_with_window()
    for trajectory, number in (("train/0/195", 4550), ("train/0/195", 25), ("val/0/3", 0)):
        write_frame(folder / trajectory, number, room)
    return folder
