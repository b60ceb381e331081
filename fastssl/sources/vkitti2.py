"""Layout `vkitti2`: Virtual KITTI 2, its archives unpacked into one folder.

Scene01/15-deg-left/frames/rgb/Camera_0/rgb_00000.jpg
Scene01/15-deg-left/frames/depth/Camera_0/depth_00000.png
Scene01/15-deg-left/frames/instanceSegmentation/Camera_0/instancegt_00000.png
Scene01/15-deg-left/intrinsic.txt        from textgt; optional for frames of 1242 x 375
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import normals_from_depth
from fastssl.shards import Domain
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of
from fastssl.sources.subsets import checked_subset

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
    """All frames of both cameras, in all variations; a reference is `Scene01/clone/Camera_0/00000`.

    Facts of the format, from the page of the dataset (europe.naverlabs.com, "Proxy Virtual Worlds VKITTI 2") and from
    projects that read it:

    - depth: 16-bit gray, planar z in centimetres; 65535, the far plane, is the sky and counts as not known. Depth and
      normals are as good as centimetres allow. A shard keeps what is within 65.535 m.
    - instance: indexed PNG whose numbers are 0 or 1 more than a vehicle's track. Nothing but vehicles is told apart, so
      these are the only contours; the rest is one identity.
    - normals are not part of it and are computed from the depth.
    - `intrinsic.txt`: a heading, then `frame camera K00 K11 K02 K12` per line: 725.0087 725.0087 620.5 187 throughout.
      620.5 and 187 are the middle of 1242 x 375 pixels if the first pixel's centre is at 0, so half a pixel is added.

    Raises:
        DataError: the folder holds no frames of this layout.
        UsageError: a subset was asked for; the dataset has no splits of its own.
    """

    layout: str = "vkitti2"
    domain: Domain = "synthetic"
    labelled: bool = True
    licence: str = "CC-BY-NC-SA-3.0"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """A folder of scenes, one of which has frames."""
        try:
            folders = [path / scene for scene in _names(path, _SCENE)]
            return any(
                (folder / name / "frames" / "rgb").is_dir() for folder in folders for name in _names(folder, _VARIATION)
            )
        except DataError:
            return False

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        if next(self.references(), None) is None:
            raise DataError(
                "the folder holds no frames of Virtual KITTI 2",
                where=self.path,
                expected="SceneNN/VARIATION/frames/rgb/Camera_N/rgb_NNNNN.jpg",
                do="unpack all archives into one folder, and give that folder",
            )

    def references(self) -> Iterator[str]:
        """By scene, variation, camera and number; one folder's names at a time."""
        for scene in _names(self.path, _SCENE):
            for variation in _names(self.path / scene, _VARIATION):
                rgb = self.path / scene / variation / "frames" / "rgb"
                for camera in _names(rgb, _CAMERA):
                    for name in _names(rgb / camera, _IMAGE):
                        yield f"{scene}/{variation}/{camera}/{name[4:9]}"

    def key(self, reference: str) -> str:
        """The reference in lower case, which no other one has."""
        return key_of(f"{reference.lower()}.jpg")

    def read(self, reference: str) -> Record:
        """One frame.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        scene, variation, camera, number = reference.split("/")
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


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Sorted names in a folder that match; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error
