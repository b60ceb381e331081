"""Layouts `suncg` and `pbrs`: physically based renderings of SUNCG's rooms (Zhang et al., CVPR 2017).

SUNCG has been withdrawn, and both layouts are for those who hold a copy. They show the same images; rooms have names of
32 hexadecimal digits, frames of six decimal ones.

`pbrs`, 640 x 480, as released (every `_v2` folder is one archive), or as the release's own tools leave it, all files of
a room in one folder, without the folders named `_v2`:

    mlt_v2/ROOM/FRAME_mlt.png                       8-bit RGB
    depth_v2/ROOM/FRAME_depth.png                   16-bit gray, planar z in millimetres, 0 = not known
    normal_v2/ROOM/FRAME_norm_camera.png            16-bit RGB, 65535 (n + 1) / 2; red right, green forward, blue up
    normal_v2/ROOM/FRAME_valid.png                  8-bit gray, 0 = no normal
    node_v2/ROOM/FRAME_node.png                     16-bit gray, identities, 0 = nothing; or, where there are none,
    boundary_v2/ROOM/FRAME_instance_boundary.png    8-bit gray, more than 0 = contour
    data_goodlist_v2.txt                            ROOM/FRAME per line: the frames to use; optional

Origin: yindaz/pbrs (README, `convert_camera_normal.m`, `convert_instance_boundary.m`, `seg2bdry.m`) says what the files
end in and hold; tomfunkhouser/gaps, whose `scn2img` made them, that depth is along the optical axis and that normals
are turned to the camera; yindaz/surface_normal, and loaders that others published, name the archives. The one of the
nodes is named by analogy. Stored contours mark a pixel where it and its right, lower and lower right neighbours are not
all of one identity.

`suncg` is the tree that Ren and Lee's code (CVPR 2018) reads, `src/dataset.py` of jason718/game-feature-learning:

    mlt/ROOM/FRAME_256.png       8-bit RGB, made smaller
    depth/ROOM/FRAME_256.png     16-bit gray, planar z in millimetres, 0 = not known
    normal/ROOM/FRAME_256.png    8-bit RGB, 127.5 (n + 1)
    edge/ROOM/FRAME_256.png      8-bit or 1-bit gray, more than 0 = contour

The frame of its normals is documented nowhere. Two are known: that of `pbrs`, from which the files were made, and that
of the script by which the same authors made SceneNet's normals (away from the camera; x right, y up, z forward). Each
image is read in the one that fits the slopes of its depth, and refused if neither does.

The lens is fx = fy = 517.97, cx = 320, cy = 240 at 640 x 480, the middle of the image, so pixels' centres lie at
index + 0.5; a smaller image is taken for the whole one, stretched. Normals that are not of unit length, as a mix of two
at a border, or that face away from the camera are not known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import normals_from_depth, pixel_rays, resized_camera
from fastssl.shards import Domain
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of
from fastssl.sources.subsets import checked_subset

SIZE = (640, 480)
CAMERA = Intrinsics(fx=517.97, fy=517.97, cx=320.0, cy=240.0)
"""At the size of the release."""

PLANES = ("mlt", "depth", "normal", "edge")
"""Folders of the layout `suncg`."""

GOOD_FRAMES = "data_goodlist_v2.txt"

_LICENCE = "SUNCG terms of use; withdrawn"
_ROOM = re.compile(r"[0-9a-f]{32}")
_REFERENCE = re.compile(r"[0-9a-f]{32}/[0-9]{6}")

# Rows: what red, green and blue mean, as vectors (right, down, forward).
_PBRS_FRAME = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
_SCRIPT_FRAME = np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]], np.float32)
_UNIT = 0.1
"""Tolerance of a squared length, the release's own."""

# To tell the frame, every fourth pixel is enough; its own steps then tilt a slope by a quarter.
_STRIDE = 4
_ENOUGH_PIXELS = 64
_POOR_FIT = 0.5


class SuncgSource:
    """The images of a tree as Ren and Lee's code reads it; a reference is `ROOM/FRAME`, as in that code's lists.

    Records have contours and no instances.

    Raises:
        DataError: the folder holds no images of this layout.
        UsageError: a subset was asked for; the tree has none.
    """

    layout: str = "suncg"
    domain: Domain = "synthetic"
    labelled: bool = True
    licence: str = _LICENCE

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """It has the folders, and the first room has images."""
        try:
            return all((path / plane).is_dir() for plane in ("depth", "normal", "edge")) and _holds(
                path / "mlt", "_256.png"
            )
        except DataError:
            return False

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        if next(self.references(), None) is None:
            raise DataError(
                "the folder holds no images of this layout",
                where=self.path,
                expected="{mlt,depth,edge,normal}/ROOM/FRAME_256.png",
            )

    def references(self) -> Iterator[str]:
        """By room and frame; one folder's names at a time."""
        return _frames(self.path / "mlt", "_256.png")

    def key(self, reference: str) -> str:
        """The reference with `__` for the slash."""
        return key_of(f"{reference}.jpg")

    def read(self, reference: str) -> Record:
        """One image.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else, or its normals fit its depth
                in neither frame; the error names the file.
        """
        mlt, depth, normal, edge = (self.path / plane / f"{reference}_256.png" for plane in PLANES)
        image = read_image(mlt)
        height, width, _ = image.shape
        camera = resized_camera(CAMERA, width / SIZE[0], height / SIZE[1])
        metres = _metres(depth, (width, height))
        stored = read_plane(normal, "RGB", (width, height)).astype(np.float32) / np.float32(127.5) - np.float32(1)
        stored = _unit(stored)
        return Record(
            key=self.key(reference),
            image=image,
            depth=metres,
            normal=_facing(stored @ _frame(stored, metres, camera, normal), camera),
            edge=_read_contours(edge, (width, height)),
            camera=camera,
        )


class PbrsSource:
    """The images of the original release; a reference is `ROOM/FRAME`, as in its list of good frames.

    If that list is in the folder, its frames are read, as far as their images are there; otherwise all.
    Identities are read if the first image has them, otherwise contours.

    Args:
        path: the folder of the unpacked archives, or of the rooms as the release's tools leave them.

    Raises:
        DataError: the folder holds no images of this layout, or a line of the list is none of it.
        UsageError: a subset was asked for; the release has none.
    """

    layout: str = "pbrs"
    domain: Domain = "synthetic"
    labelled: bool = True
    licence: str = _LICENCE

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """The first room of `mlt_v2`, or of the folder itself, has images."""
        try:
            return _holds(path / "mlt_v2", "_mlt.png") or _holds(path, "_mlt.png")
        except DataError:
            return False

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        self._as_released = (self.path / "mlt_v2").is_dir()
        first = next(self.references(), None)
        if first is None:
            raise DataError(
                "the folder holds no images of this layout",
                where=self.path,
                expected="mlt_v2/ROOM/FRAME_mlt.png, or ROOM/FRAME_mlt.png",
            )
        self._has_nodes = self._file("node", first, "node").exists()

    def references(self) -> Iterator[str]:
        """In the order of the list, or by room and frame; one folder's names at a time."""
        if (self.path / GOOD_FRAMES).is_file():
            return (frame for frame in self._listed() if self._file("mlt", frame, "mlt").exists())
        return _frames(self.path / "mlt_v2" if self._as_released else self.path, "_mlt.png")

    def key(self, reference: str) -> str:
        """The reference with `__` for the slash."""
        return key_of(f"{reference}.jpg")

    def read(self, reference: str) -> Record:
        """One image.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        picture = self._file("mlt", reference, "mlt")
        image = read_image(picture)
        if image.shape[1::-1] != SIZE:
            seen, expected = f"{image.shape[1]} x {image.shape[0]}", f"{SIZE[0]} x {SIZE[1]}"
            raise DataError("an image does not have the release's size", where=picture, seen=seen, expected=expected)
        codes = _read_colour_of_16_bits(self._file("normal", reference, "norm_camera"))
        valid = read_plane(self._file("normal", reference, "valid"), "L", SIZE) > 0
        stored = _unit(codes.astype(np.float32) / np.float32(32767.5) - np.float32(1)) * valid[..., None]
        instance, edge = None, None
        if self._has_nodes:
            instance = read_plane(self._file("node", reference, "node"), "I;16", SIZE).astype(np.int32)
        else:
            edge = _read_contours(self._file("boundary", reference, "instance_boundary"), SIZE)
        return Record(
            key=self.key(reference),
            image=image,
            depth=_metres(self._file("depth", reference, "depth"), SIZE),
            normal=_facing(stored @ _PBRS_FRAME, CAMERA),
            instance=instance,
            edge=edge,
            camera=CAMERA,
        )

    def _file(self, archive: str, reference: str, ending: str) -> Path:
        folder = self.path / f"{archive}_v2" if self._as_released else self.path
        return folder / f"{reference}_{ending}.png"

    def _listed(self) -> Iterator[str]:
        path = self.path / GOOD_FRAMES
        with path.open(encoding="ascii", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                frame = line.strip()
                if frame and not _REFERENCE.fullmatch(frame):
                    raise DataError("a list of frames is damaged", where=f"{path}:{number}", seen=frame[:80])
                if frame:
                    yield frame


def _frames(folder: Path, ending: str) -> Iterator[str]:
    """`ROOM/FRAME` of the files with this ending."""
    name = re.compile(rf"([0-9]{{6}}){re.escape(ending)}")
    for room in _names(folder, _ROOM):
        for frame in _names(folder / room, name):
            yield f"{room}/{frame[:6]}"


def _holds(folder: Path, ending: str) -> bool:
    """The first room has files with this ending."""
    return any(_names(folder / room, re.compile(rf"[0-9]{{6}}{ending}")) for room in _names(folder, _ROOM)[:1])


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Names in a folder that match, sorted; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error


def _metres(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    return read_plane(path, "I;16", size).astype(np.float32) / np.float32(1000)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors brought to unit length; zero where they are too far from it."""
    square = np.einsum("hwc,hwc->hw", vectors, vectors)
    scale = np.zeros_like(square)
    np.divide(1, np.sqrt(square), out=scale, where=np.abs(square - 1) <= _UNIT)
    unit: NDArray[np.float32] = vectors * scale[..., None]
    return unit


def _facing(normal: NDArray[np.float32], camera: Intrinsics) -> NDArray[np.float32]:
    """Normals without those that face away from the camera."""
    rays = pixel_rays(camera, *normal.shape[:2]).astype(np.float32)
    normal[np.einsum("hwc,hwc->hw", normal, rays) >= 0] = 0
    return normal


def _frame(
    stored: NDArray[np.float32], depth: NDArray[np.float32], camera: Intrinsics, path: Path
) -> NDArray[np.float32]:
    """The frame in which these normals fit the depth."""
    few = np.s_[_STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]
    slopes = normals_from_depth(depth[few], resized_camera(camera, 1 / _STRIDE, 1 / _STRIDE))
    both = stored[few].any(axis=2) & slopes.any(axis=2)
    if both.sum() < _ENOUGH_PIXELS:
        return _PBRS_FRAME
    stored, slopes = stored[few][both], slopes[both]
    pbrs, script = (float(((stored @ frame) * slopes).sum(axis=1).mean()) for frame in (_PBRS_FRAME, _SCRIPT_FRAME))
    if max(pbrs, script) < _POOR_FIT:
        raise DataError(
            "the normals of an image do not fit its depth",
            where=path,
            seen=f"mean cosine {pbrs:.2f} in the frame of the release, {script:.2f} in that of the authors' script",
            expected=f"one of them to be {_POOR_FIT} or more",
        )
    return _PBRS_FRAME if pbrs >= script else _SCRIPT_FRAME


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """A PNG whose faults are errors that name it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError("a label plane is missing", where=path) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for a damaged file.
        raise DataError("a label plane does not decode", where=path, seen=str(error) or type(error).__name__) from error


def _expect(path: Path, mode: str, size: tuple[int, int], modes: tuple[str, ...], expected: tuple[int, int]) -> None:
    if mode not in modes or size != expected:
        raise DataError(
            "a label plane is not what its dataset says",
            where=path,
            seen=f"{size[0]} x {size[1]} pixels of mode {mode}",
            expected=f"{expected[0]} x {expected[1]} of mode {' or '.join(modes)}",
        )


def _read_contours(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    with _opened(path) as image:
        mode, pixels = image.mode, np.array(image)
    _expect(path, mode, pixels.shape[1::-1], ("L", "1"), size)
    return pixels > 0


def _read_colour_of_16_bits(path: Path) -> NDArray[np.uint16]:
    """A PNG of 16-bit RGB. Pillow hands out one byte of each pair: first the high ones, then the low ones are asked."""
    halves: list[NDArray[np.uint16]] = []
    for order in ("RGB;16B", "RGB;16L"):
        with _opened(path) as image:
            mode, size = image.tile[0].args, image.size
            if mode == "RGB;16B":
                image.tile = [image.tile[0]._replace(args=order)]
                halves.append(np.array(image, dtype=np.uint16))
        _expect(path, str(mode), size, ("RGB;16B",), SIZE)
    high, low = halves
    return high << np.uint16(8) | low
