"""Layout `vkitti2`: Virtual KITTI 2 (Cabon et al., 2020), drives through streets rebuilt in a game engine.

    SceneNN/VARIATION/frames/
        rgb/Camera_N/rgb_NNNNN.jpg                              8-bit RGB, 1242 x 375
        depth/Camera_N/depth_NNNNN.png                          16-bit gray, planar z in centimetres, 65535 = sky
        instanceSegmentation/Camera_N/instancegt_NNNNN.png      palette, 0 or a vehicle's track plus 1
    SceneNN/VARIATION/intrinsic.txt     from `textgt`: a heading, then lines `frame camera K00 K11 K02 K12`; optional
                                        for frames of 1242 x 375

Origin of these facts: the dataset's page (europe.naverlabs.com, "Proxy Virtual Worlds VKITTI 2") and projects that read
it.

Depth has steps of a centimetre. The sky, 655.35 m away as the far plane is, is not known, and a shard keeps what is
within 65.535 m.

The lens is 725.0087 725.0087 620.5 187 in all lines. 620.5 and 187 are the middle of 1242 x 375 pixels if the first
pixel's centre is at 0, so half a pixel is added.

Normals are no part of the dataset and are computed from the depth, within vehicles, as well as its steps allow.

Instances are vehicles. Nothing else is told apart, so theirs are the only contours; the rest is one identity.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import normals_from_depth
from fastssl.shards import Domain
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of, reference_parts
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset, first_reference

INTRINSICS = "intrinsic.txt"

_SCENE = re.compile(r"Scene[0-9]{2}")
_VARIATION = re.compile(r"[0-9a-z-]+")
_CAMERA = re.compile(r"Camera_[0-9]")
_IMAGE = re.compile(r"rgb_[0-9]{5}\.jpg")
_SIZE = (1242, 375)
_FOCAL_LENGTH, _CENTRE_X, _CENTRE_Y = 725.0087, 620.5, 187.0
_SKY = 65535
_STEP = 0.01
"""Metres per unit of depth."""


class Vkitti2Source:
    """The frames of both cameras in all variations; a reference is as in `Scene01/clone/Camera_0/00000`.

    Args:
        path: the folder of the scenes, into which all archives are unpacked.
        subset: None; the dataset has no splits of its own.

    Raises:
        UsageError: a subset was asked for.
        DataError: the folder holds no frames.
    """

    layout: ClassVar[str] = "vkitti2"
    domain: ClassVar[Domain] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "CC-BY-NC-SA-3.0, as far as known; check the terms"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """A folder of scenes, one of which has frames."""
        scenes = (path / scene for scene in matching_names(path, _SCENE))
        return any(
            (scene / name / "frames" / "rgb").is_dir() for scene in scenes for name in matching_names(scene, _VARIATION)
        )

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        first_reference(
            self,
            "frames of Virtual KITTI 2",
            expected="SceneNN/VARIATION/frames/rgb/Camera_N/rgb_NNNNN.jpg",
            do="unpack all archives into one folder, and give that folder",
        )

    def references(self) -> Iterator[str]:
        """By scene, variation, camera and number; one folder's names at a time."""
        for scene in matching_names(self.path, _SCENE):
            for variation in matching_names(self.path / scene, _VARIATION):
                rgb = self.path / scene / variation / "frames" / "rgb"
                for camera in matching_names(rgb, _CAMERA):
                    for name in matching_names(rgb / camera, _IMAGE):
                        yield f"{scene}/{variation}/{camera}/{name[4:9]}"

    def key(self, reference: str) -> str:
        """The reference in lower case, which no other one has."""
        return key_of(f"{reference.lower()}.jpg")

    def read(self, reference: str) -> Record:
        """One frame.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        scene, variation, camera, number = reference_parts(reference, "SCENE/VARIATION/CAMERA/NUMBER")
        folder = self.path / scene / variation
        frames = folder / "frames"
        image = read_image(frames / "rgb" / camera / f"rgb_{number}.jpg")
        size = image.shape[1], image.shape[0]
        centimetres = read_plane(frames / "depth" / camera / f"depth_{number}.png", "I;16", size)
        tracks = read_plane(frames / "instanceSegmentation" / camera / f"instancegt_{number}.png", "P", size)
        intrinsics = _intrinsics(folder / INTRINSICS, int(number), int(camera[-1]), size)
        depth = np.where(centimetres == _SKY, 0, centimetres * _STEP).astype(np.float32)
        return Record(
            key=self.key(reference),
            image=image,
            depth=depth,
            normal=normals_from_depth(depth, intrinsics, tracks, step=_STEP),
            instance=tracks.astype(np.int32),
            camera=intrinsics,
        )


def _intrinsics(path: Path, frame: int, camera: int, size: tuple[int, int]) -> Intrinsics:
    """The line of a frame and camera, or what all lines of the dataset say if there is no such file."""
    try:
        lines = path.read_text("ascii").splitlines()[1:]
        numbers = next(line.split()[2:] for line in lines if line.split()[:2] == [str(frame), str(camera)])
        fx, fy, cx, cy = (float(number) for number in numbers)
        if not (0 < fx < np.inf and 0 < fy < np.inf and np.isfinite([cx, cy]).all()):
            raise ValueError(f"{fx} {fy} {cx} {cy}")
    except FileNotFoundError as error:
        if size != _SIZE:
            raise DataError(
                "the intrinsics of a frame are not known",
                where=path,
                seen=f"no such file, and images of {size[0]} x {size[1]}",
                expected=f"the file, or images of {_SIZE[0]} x {_SIZE[1]}",
                do="unpack the archive textgt as well",
            ) from error
        fx = fy = _FOCAL_LENGTH
        cx, cy = _CENTRE_X, _CENTRE_Y
    except (OSError, ValueError, StopIteration) as error:
        raise DataError(
            "the intrinsics of a frame cannot be read",
            where=path,
            seen=str(error) or "no line of this frame",
            expected=f"a line: {frame} {camera} K[0,0] K[1,1] K[0,2] K[1,2]",
        ) from error
    return Intrinsics(fx=fx, fy=fy, cx=cx + 0.5, cy=cy + 0.5)
