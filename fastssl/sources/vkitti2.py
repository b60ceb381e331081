"""Layout `vkitti2`: Virtual KITTI 2 (Cabon et al., 2020), drives through streets rebuilt in a game engine.

    SceneNN/VARIATION/frames/
        rgb/Camera_N/rgb_NNNNN.jpg                              8-bit RGB, 1242 x 375
        depth/Camera_N/depth_NNNNN.png                          16-bit gray, planar z in centimetres, 65535 = sky
        instanceSegmentation/Camera_N/instancegt_NNNNN.png      palette, 0 or a vehicle's track plus 1
    SceneNN/VARIATION/intrinsic.txt     from `textgt`: a heading, then lines `frame camera K00 K11 K02 K12`; optional
                                        for frames of 1242 x 375

Given is the folder of the scenes, one scene, or one variation. All archives have these paths; where each was unpacked
into a folder of its own name (`vkitti_2.0.3_rgb/SceneNN/...` beside `vkitti_2.0.3_depth/SceneNN/...` and so on), the
folder of these is given.

Origin of these facts: the dataset's page (europe.naverlabs.com, "Proxy Virtual Worlds VKITTI 2") and projects that read
it.

Depth has steps of a centimetre. The sky, 655.35 m away as the far plane is, is not known, and a shard keeps what is
within 65.535 m.

The lens is 725.0087 725.0087 620.5 187 in all lines. 620.5 and 187 are the middle of 1242 x 375 pixels if the first
pixel's centre is at 0, so half a pixel is added.

Normals are no part of the dataset and are computed from the depth, within vehicles. Steps of a centimetre leave a wall
right to 0.03 degrees in the mean from 2 to 20 m; what shows few pixels (8 in square at 5 m) has none.

Instances are vehicles. Nothing else is told apart, so theirs are the only contours; the rest is one identity. They are
rendered: the rest borders on vehicles at one line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.files import read_regular
from fastssl.geometry import normals_from_depth
from fastssl.shards import DomainName, PassedOver
from fastssl.sources import census
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset, first_reference

INTRINSICS = "intrinsic.txt"

_SCENE = re.compile(r"Scene[0-9]{2}")
_VARIATION = re.compile(r"[0-9a-z-]+")
_CAMERA = re.compile(r"Camera_[0-9]")
_IMAGE = re.compile(r"rgb_[0-9]{5}\.jpg")
_ARCHIVE = "vkitti_2.0.3_"
_ARCHIVES = ("rgb", "depth", "instanceSegmentation", "textgt")
"""Those that are read."""
_FILE = re.compile(
    rf"(?:{re.escape(_ARCHIVE)}[A-Za-z]+/)?(?P<variation>(?:Scene[0-9]{{2}}/)?(?:[0-9a-z-]+/)?)"
    r"(?:frames/(?:rgb/(?P<camera>Camera_[0-9])/rgb_(?P<number>[0-9]{5})\.jpg"
    r"|(?:depth/(?P<depth>Camera_[0-9])/depth|instanceSegmentation/(?P<tracks>Camera_[0-9])/instancegt)"
    r"_(?P<plane>[0-9]{5})\.png"
    r"|(?:classSegmentation|(?:for|back)ward(?:Scene)?Flow)/Camera_[0-9]/(?:classgt|flow|sceneFlow)_[0-9]{5}\.png)"
    r"|(?:bbox|colors|extrinsic|info|intrinsic|pose)\.txt)"
)
"""All files of the dataset; those with a number are read."""
_SIZE = (1242, 375)
_FOCAL_LENGTH, _CENTRE_X, _CENTRE_Y = 725.0087, 620.5, 187.0
_SKY = 65535
_STEP = 0.01
"""Metres per unit of depth."""


class Vkitti2Source:
    """The frames of both cameras in all variations; a reference is as in `Scene01/clone/Camera_0/00000`.

    Args:
        path: the folder of the scenes, into which all archives are unpacked, or one scene, or one variation; or the
            folder of the archives' own folders.
        subset: None; the dataset has no splits of its own.

    Raises:
        UsageError: a subset was asked for.
        DataError: the folder holds no frames.
    """

    layout: ClassVar[str] = "vkitti2"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "CC-BY-NC-SA-3.0, as far as known; check the terms"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """Cameras of a variation, at any of the places that `path` may be."""
        rgb = _tops(path)["rgb"]
        for variation in _variations(rgb):
            if cameras := matching_names(rgb / variation / "frames" / "rgb", _CAMERA):
                return f"{(rgb / variation).relative_to(path) / 'frames' / 'rgb'} has {cameras[0]}"
        return None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        self._tops = _tops(self.path)
        first_reference(
            self,
            "frames of Virtual KITTI 2",
            expected="SceneNN/VARIATION/frames/rgb/Camera_N/rgb_NNNNN.jpg",
            hint="unpack all archives into one folder, or each into one of its name, and give the folder above",
        )

    def references(self) -> Iterator[str]:
        """Frames in the order of scene, variation, camera and number; one folder's names at a time."""
        top = self._tops["rgb"]
        for variation in _variations(top):
            rgb = top / variation / "frames" / "rgb"
            for camera in matching_names(rgb, _CAMERA):
                for name in matching_names(rgb / camera, _IMAGE):
                    yield f"{variation}{camera}/{name[4:9]}"

    def passed_over(self) -> dict[str, PassedOver]:
        """Files below the folder that are not of the dataset, and depth and instances without an image."""
        top = self._tops["rgb"]
        variations = set(_variations(top))
        images = lru_cache(maxsize=1)(lambda folder: set(matching_names(top / folder, _IMAGE)))

        def is_used(file: str) -> bool:
            parts = _FILE.fullmatch(file)
            if parts is None or parts["variation"] not in variations:
                return False
            camera, number = parts["camera"] or parts["depth"] or parts["tracks"], parts["number"] or parts["plane"]
            return number is None or f"rgb_{number}.jpg" in images(f"{parts['variation']}frames/rgb/{camera}")

        return census.passed_over(self.path, is_used)

    def key(self, reference: str) -> str:
        """The reference in lower case, which no other one has."""
        return key_of(f"{reference.lower()}.jpg")

    def read(self, reference: str) -> Record:
        """One frame.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        above, _, number = reference.rpartition("/")
        variation, _, camera = above.rpartition("/")
        rgb, depths, instances, texts = (self._tops[archive] / variation for archive in _ARCHIVES)
        image = read_image(rgb / "frames" / "rgb" / camera / f"rgb_{number}.jpg")
        size = image.shape[1], image.shape[0]
        centimetres = read_plane(depths / "frames" / "depth" / camera / f"depth_{number}.png", "I;16", size)
        tracks = instances / "frames" / "instanceSegmentation" / camera / f"instancegt_{number}.png"
        vehicles = read_plane(tracks, "P", size)
        intrinsics = _intrinsics(texts / INTRINSICS, int(number), int(camera[-1]), size)
        depth = np.where(centimetres == _SKY, 0, centimetres * _STEP).astype(np.float32)
        return Record(
            key=self.key(reference),
            image=image,
            depth=depth,
            normal=normals_from_depth(depth, intrinsics, vehicles, step=_STEP),
            instance=vehicles.astype(np.int32),
            camera=intrinsics,
        )


def _tops(path: Path) -> dict[str, Path]:
    """Where the files of each archive lie: all in the folder, or in folders of the archives' names."""
    apart = bool(matching_names(path, re.compile(re.escape(f"{_ARCHIVE}rgb"))))
    return {name: path / f"{_ARCHIVE}{name}" if apart else path for name in _ARCHIVES}


def _variations(path: Path) -> Iterator[str]:
    """Where variations may lie below the path, as paths that end in a slash; the empty one is the path itself."""
    yield ""
    for scene in ("", *(f"{name}/" for name in matching_names(path, _SCENE))):
        for variation in matching_names(path / scene, _VARIATION):
            yield f"{scene}{variation}/"


def _intrinsics(path: Path, frame: int, camera: int, size: tuple[int, int]) -> Intrinsics:
    """The line of a frame and camera, or what all lines of the dataset say if there is no such file."""
    try:
        lines = read_regular(path).decode("ascii").splitlines()[1:]
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
                hint="unpack the archive textgt as well",
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
