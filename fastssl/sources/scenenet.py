"""Layout `scenenet`: SceneNet RGB-D (McCormac et al., ICCV 2017), walks through furnished rooms, ray traced.

    {train/<0..16>,val/0}/TRAJECTORY/
        photo/<n>.jpg         8-bit RGB, 320 x 240, with the motion blur of a shutter
        depth/<n>.png         16-bit gray, millimetres from the camera's centre along the ray, 0 = nothing hit
        instance/<n>.png      16-bit gray, identities that last for a trajectory, 0 = background

A trajectory has 300 frames, numbered 0, 25, ... 7475; train has 16,865 of them, val 1,000.

Origin of these facts: README, `camera_pose_and_intrinsics_example.py` and `calculate_surface_normals.py` of the
dataset's repository, jmccormac/pySceneNetRGBD.

Depth is the length of the ray, and becomes planar z: taken for z, it would bend every wall (by 15 degrees of normals on
a frontal one, on average). The authors of the paper this project follows did take it so, with the lens of a Kinect.

The field of view is 60 degrees by 45 (the 40 of the dataset's paper is a misprint, says its README) and reaches from
border to border, so pixels are not square and their centres lie at index + 0.5.

Normals are no part of the dataset and are computed from the depth, within instances. Labels are of the middle of the
shutter's time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from fastssl.batch import Intrinsics, Record
from fastssl.geometry import depth_from_ray_length, normals_from_depth
from fastssl.shards import Domain
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset, first_reference

SUBSETS = ("train", "val")
SIZE = WIDTH, HEIGHT = 320, 240
CAMERA = Intrinsics(
    fx=float(WIDTH / 2 / np.tan(np.radians(60 / 2))),
    fy=float(HEIGHT / 2 / np.tan(np.radians(45 / 2))),
    cx=WIDTH / 2,
    cy=HEIGHT / 2,
)
"""Of every image: fx 277.128, fy 289.706."""

_PLANES = ("photo", "depth", "instance")
_NUMBER = re.compile(r"(0|[1-9][0-9]*)")
_PHOTO = re.compile(r"(0|[1-9][0-9]*)\.jpg")


class SceneNetSource:
    """The frames in one folder; a reference is the path of one below it, as in `train/0/195/4550`.

    Args:
        path: the folder of `train` and `val`, or one of these two, or one of their numbered parts.
        subset: `train` or `val`; None takes all that the folder holds.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no frames (of the subset).
    """

    layout: ClassVar[str] = "scenenet"
    domain: ClassVar[Domain] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "check the terms of SceneNet RGB-D"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """A tree whose first trajectory has photos, depth and instances."""
        trajectories = (path / part / str(number) for part in _parts(path, None) for number in _numbers(path / part))
        first = next(trajectories, None)
        return first is not None and all((first / plane).is_dir() for plane in _PLANES)

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, SUBSETS)
        first_reference(
            self,
            "frames of SceneNet RGB-D",
            expected="{train/<0..16>,val/0}/TRAJECTORY/photo/<n>.jpg",
            do="give the folder of train and val, one of these two, or one of their numbered parts",
        )

    def references(self) -> Iterator[str]:
        """By subset, part, trajectory and number; one folder's names at a time."""
        for part in _parts(self.path, self.subset):
            for trajectory in _numbers(self.path / part):
                for frame in _numbers(self.path / part / str(trajectory) / "photo", _PHOTO):
                    yield f"{part}{trajectory}/{frame}"

    def key(self, reference: str) -> str:
        """The reference with `__` for every slash."""
        return key_of(f"{reference}.jpg")

    def read(self, reference: str) -> Record:
        """One frame.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        trajectory, _, frame = reference.rpartition("/")
        folder = self.path / trajectory
        image = read_image(folder / "photo" / f"{frame}.jpg", SIZE)
        millimetres = read_plane(folder / "depth" / f"{frame}.png", "I;16", SIZE)
        instance = read_plane(folder / "instance" / f"{frame}.png", "I;16", SIZE)
        depth = depth_from_ray_length(millimetres / 1000, CAMERA)
        return Record(
            key=self.key(reference),
            image=image,
            depth=depth,
            normal=normals_from_depth(depth, CAMERA, instance),
            instance=instance.astype(np.int32),
            camera=CAMERA,
        )


def _parts(path: Path, subset: str | None) -> Iterator[str]:
    """Folders of trajectories below the path, each with a slash at its end; of the path itself, the empty string."""
    splits = [name for name in SUBSETS if (path / name).is_dir()]
    if splits:
        for name in splits:
            if subset in (None, name):
                yield from (f"{name}/{part}/" for part in _numbers(path / name))
        return
    numbers = _numbers(path)
    is_part = any((path / str(number) / "photo").is_dir() for number in numbers)
    above = path.resolve().parent if is_part else path.resolve()
    if subset in (None, above.name):
        yield from [""] if is_part else (f"{number}/" for number in numbers)


def _numbers(folder: Path, pattern: re.Pattern[str] = _NUMBER) -> list[int]:
    """Numbers that are names in a folder, in their order; none if there is no such folder."""
    return sorted(int(name.partition(".")[0]) for name in matching_names(folder, pattern))
