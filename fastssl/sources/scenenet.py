"""Layout `scenenet`: SceneNet RGB-D (McCormac et al., ICCV 2017), walks through furnished rooms, ray traced.

    {train/<0..16>,val/0}/TRAJECTORY/
        photo/<n>.jpg         8-bit RGB, 320 x 240, with the motion blur of a shutter
        depth/<n>.png         16-bit gray, millimetres from the camera's centre along the ray, 0 = nothing hit
        instance/<n>.png      16-bit gray, identities that last for a trajectory, 0 = background

A trajectory has 300 frames, numbered 0, 25, ... 7475; train has 16,865 of them, val 1,000. Given is the folder of train
and val, one of these, a numbered part, or one trajectory.

Origin of these facts: README, `camera_pose_and_intrinsics_example.py` and `calculate_surface_normals.py` of the
dataset's repository, jmccormac/pySceneNetRGBD.

Depth is the length of the ray, and becomes planar z: taken for z, it would bend every wall (by 15 degrees of normals on
a frontal one, on average). The authors of the paper this project follows did take it so, with the lens of a Kinect.

The field of view is 60 degrees by 45 (the 40 of the dataset's paper is a misprint, says its README) and reaches from
border to border, so pixels are not square and their centres lie at index + 0.5.

Normals are no part of the dataset and are computed from the depth, within instances. A step of the depth is a
millimetre of the ray, which is less of z, the farther a pixel lies off the axis. A wall is right to 0.13 degrees in the
mean from 2 to 20 m.

Instances are rendered, and the background (0) is one of them, seen through windows: it borders on objects at one line,
so that it has one contour. Labels are of the middle of the shutter's time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.geometry import depth_from_ray_length, normals_from_depth
from fastssl.shards import DomainName, PassedOver
from fastssl.sources import census
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
"""The camera of every image: fx 277.128, fy 289.706."""

_PER_METRE = 1000
"""Units of depth, along the ray."""

_PLANES = ("photo", "depth", "instance")
_SPLIT = re.compile("|".join(SUBSETS))
_NUMBER = re.compile(r"(0|[1-9][0-9]*)")
_PHOTO = re.compile(r"(0|[1-9][0-9]*)\.jpg")
_FILE = re.compile(r"(?P<trajectory>(?:.*/)?)(?:photo/(?P<photo>[0-9]+)\.jpg|(depth|instance)/(?P<plane>[0-9]+)\.png)")
_POSES = re.compile(r"(?:.*/)?scenenet_rgbd_(?:train_[0-9]+|val)\.pb")
_FEW = 10
"""Trajectories that are looked into."""


class SceneNetSource:
    """The frames in one folder; a reference is the path of one below it, as in `train/0/195/4550`.

    Args:
        path: the folder of `train` and `val`, or one of these two, one of their numbered parts, or one trajectory.
        subset: `train` or `val`; None takes all that the folder holds.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no frames (of the subset).
    """

    layout: ClassVar[str] = "scenenet"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "check the terms of SceneNet RGB-D"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """One of the first trajectories has photos, depth and instances."""
        for trajectory in islice(_trajectories(path, None), _FEW):
            if all((path / trajectory / plane).is_dir() for plane in _PLANES) and _photos(path / trajectory):
                return f"{trajectory.rstrip('/') or 'the folder'} has photo, depth and instance"
        return None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, SUBSETS)
        first_reference(
            self,
            "frames of SceneNet RGB-D",
            expected="{train/<0..16>,val/0}/TRAJECTORY/photo/<n>.jpg",
            hint="give the folder of train and val, one of these two, one of their numbered parts, or one trajectory",
        )

    def references(self) -> Iterator[str]:
        """Frames in the order of subset, part, trajectory and number; one folder's names at a time."""
        for trajectory in _trajectories(self.path, self.subset):
            for frame in _photos(self.path / trajectory):
                yield f"{trajectory}{frame}"

    def passed_over(self) -> dict[str, PassedOver]:
        """Files below the folder that are not of the dataset, and depth and instances without a photo."""
        trajectories = set(_trajectories(self.path, None))
        photos = lru_cache(maxsize=1)(lambda trajectory: {str(number) for number in _photos(self.path / trajectory)})

        def is_used(file: str) -> bool:
            parts = _FILE.fullmatch(file)
            if parts is None or parts["trajectory"] not in trajectories:
                return _POSES.fullmatch(file) is not None
            return (parts["photo"] or parts["plane"]) in photos(parts["trajectory"])

        return census.passed_over(self.path, is_used)

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
        depth = depth_from_ray_length(millimetres / _PER_METRE, CAMERA)
        return Record(
            key=self.key(reference),
            image=image,
            depth=depth,
            normal=normals_from_depth(depth, CAMERA, instance, step=_steps()),
            instance=instance.astype(np.int32),
            camera=CAMERA,
        )


@lru_cache(maxsize=1)
def _steps() -> NDArray[np.float32]:
    """(H, W) metres of planar depth that a step along the ray is; not to be written to."""
    return depth_from_ray_length(np.full((HEIGHT, WIDTH), 1 / _PER_METRE), CAMERA)


def _trajectories(path: Path, subset: str | None) -> Iterator[str]:
    """Where trajectories lie below the path, as paths that end in a slash; the empty one is the path itself."""
    if subset in (None, path.resolve().parent.parent.name) and _photos(path):
        yield ""
    for part in _parts(path, subset):
        for number in _numbers(path / part):
            yield f"{part}{number}/"


def _parts(path: Path, subset: str | None) -> Iterator[str]:
    """Folders of trajectories below the path, each with a slash at its end; of the path itself, the empty string."""
    splits = matching_names(path, _SPLIT)
    for name in splits:
        if subset in (None, name):
            yield from (f"{name}/{part}/" for part in _numbers(path / name))
    if splits:
        return
    numbers = _numbers(path)
    is_part = any(_photos(path / str(number)) for number in numbers)
    above = path.resolve().parent if is_part else path.resolve()
    if subset in (None, above.name):
        yield from [""] if is_part else (f"{number}/" for number in numbers)


def _photos(trajectory: Path) -> list[int]:
    return _numbers(trajectory / "photo", _PHOTO)


def _numbers(folder: Path, pattern: re.Pattern[str] = _NUMBER) -> list[int]:
    """Numbers that are names in a folder, in their order; none if there is no such folder."""
    return sorted(int(name.partition(".")[0]) for name in matching_names(folder, pattern))
