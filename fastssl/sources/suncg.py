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

Either tree may be given by the folder above it (`pbrs`, `projects_render` or `suncg_image` in it) or by one of its own
folders (`mlt_v2`, `mlt`).

Depth enters no normal: it only chooses between frames, or refuses. Identities are rendered, one a pixel, so there are
no unlabelled ribbons between objects: the border to where nothing is seen, 0, is one contour, as others are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import pixel_rays, resized_camera
from fastssl.shards import DomainName, PassedOver, Tally
from fastssl.sources import census
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names
from fastssl.sources.lists import numbered_lines
from fastssl.sources.normals import facing_normals, stored_and_computed, unit_normals
from fastssl.sources.opening import checked_subset, first_reference, whole_path
from fastssl.sources.regular import is_folder, is_regular

SIZE = (640, 480)
CAMERA = Intrinsics(fx=517.97, fy=517.97, cx=320.0, cy=240.0)
"""At the size of the release."""

PLANES = ("mlt", "depth", "normal", "edge")
"""Folders of the layout `suncg`."""

GOOD_FRAMES = "data_goodlist_v2.txt"
ARCHIVES = ("mlt", "depth", "normal", "node", "boundary")
"""Folders of the layout `pbrs`, without the `_v2` behind."""

UNNAMED = f"images that {GOOD_FRAMES} does not name"
NOT_THERE = f"frames of {GOOD_FRAMES} whose images are not there"

_LICENCE = "SUNCG terms of use (withdrawn)"
_ROOM = re.compile(r"[0-9a-f]{32}")
_REFERENCE = re.compile(r"[0-9a-f]{32}/[0-9]{6}")
_FILES = r"[0-9a-f]{32}/[0-9]{6}_(mlt|depth|norm_camera|valid|node|instance_boundary)\.png"
_ROOMS = 10
"""How many are looked into for images."""

# Rows: what red, green and blue mean, as vectors (right, down, forward).
_PBRS_FRAME = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
_SCRIPT_FRAME = np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]], np.float32)
_ENOUGH_PIXELS = 64
_POOR_FIT = 0.5


class SuncgSource:
    """The images of a tree as Ren and Lee's code reads it; a reference is `ROOM/FRAME`, as in that code's lists.

    Records have contours and no instances.

    Args:
        path: the folder of `mlt`, `depth`, `normal` and `edge`, one of these four, or the one that holds it as
            `suncg_image`.
        subset: None; the tree has no splits.

    Raises:
        UsageError: a subset was asked for.
        DataError: the folder holds no images.
    """

    layout: ClassVar[str] = "suncg"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = _LICENCE

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """The folders of all planes, and images of the first rooms."""
        root = _small_root(path)
        return f"{whole_path(root).name} has {', '.join(PLANES)}, with images of rooms" if root is not None else None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        self._root = _small_root(self.path) or self.path
        first_reference(self, "images of SUNCG", expected="{mlt,depth,normal,edge}/ROOM/FRAME_256.png")

    def references(self) -> Iterator[str]:
        """Frames in the order of room and number; one folder's names at a time."""
        return _frames(self._root / "mlt", "_256.png")

    def key(self, reference: str) -> str:
        """The reference with `__` for every slash."""
        return key_of(f"{reference}.jpg")

    def read(self, reference: str) -> Record:
        """One image.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else, or its normals fit its depth
                in neither frame; the error names the file.
        """
        mlt, depth, normal, edge = (self._root / plane / f"{reference}_256.png" for plane in PLANES)
        image = read_image(mlt)
        height, width, _ = image.shape
        camera = resized_camera(CAMERA, width / SIZE[0], height / SIZE[1])
        metres = _metres(depth, (width, height))
        codes = read_plane(normal, "RGB", (width, height))
        stored = unit_normals(codes.astype(np.float32) / np.float32(127.5) - np.float32(1))
        turned = stored @ _frame(stored, metres, camera, normal)
        return Record(
            key=self.key(reference),
            image=image,
            depth=metres,
            normal=facing_normals(turned, pixel_rays(camera, height, width)),
            edge=_edge(edge, (width, height)),
            camera=camera,
        )

    def passed_over(self) -> dict[str, PassedOver]:
        """Whatever is not one of the four planes."""
        used = re.compile(rf"({'|'.join(PLANES)})/[0-9a-f]{{32}}/[0-9]{{6}}_256\.png")
        below = _below(self.path, self._root)
        return census.passed_over(self.path, lambda path: used.fullmatch(below(path)) is not None)


class PbrsSource:
    """The images of the original release; a reference is `ROOM/FRAME`, as in its list of good frames.

    If that list is in the folder, its frames are read, as far as their images are there; otherwise all.
    Identities are read if the first image has them, otherwise contours.

    Args:
        path: the folder of the unpacked archives, or of the rooms as the release's tools leave them; the one that
            holds it as `pbrs` or `projects_render`; or one archive's folder.
        subset: None; the release has no splits.

    Raises:
        UsageError: a subset was asked for.
        DataError: the folder holds no images, or the list of good frames is damaged.
    """

    layout: ClassVar[str] = "pbrs"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = _LICENCE

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """Images of the first rooms in `mlt_v2`, or in the folder itself."""
        root = _release_root(path)
        if root is None:
            return None
        return f"{whole_path(root).name} has {'mlt_v2 with ' if is_folder(root / 'mlt_v2') else ''}images of rooms"

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        self._root = _release_root(self.path) or self.path
        as_released = is_folder(self._root / "mlt_v2")
        self._folders = {name: _archive(self._root, name) if as_released else self._root for name in ARCHIVES}
        first = first_reference(self, "images of SUNCG", expected="mlt_v2/ROOM/FRAME_mlt.png, or ROOM/FRAME_mlt.png")
        self._has_nodes = is_regular(self._file("node", first, "node"))

    def references(self) -> Iterator[str]:
        """In the order of the list, or by room and frame; one folder's names at a time."""
        if is_regular(self._root / GOOD_FRAMES):
            return (frame for frame in self._listed() if is_regular(self._file("mlt", frame, "mlt")))
        return _frames(self._folders["mlt"], "_mlt.png")

    def key(self, reference: str) -> str:
        """The reference with `__` for every slash."""
        return key_of(f"{reference}.jpg")

    def read(self, reference: str) -> Record:
        """One image.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        image = read_image(self._file("mlt", reference, "mlt"), SIZE)
        codes = read_plane(self._file("normal", reference, "norm_camera"), "RGB;16", SIZE)
        valid = read_plane(self._file("normal", reference, "valid"), "L", SIZE) > 0
        stored = unit_normals(codes.astype(np.float32) / np.float32(32767.5) - np.float32(1)) * valid[..., None]
        instance, edge = None, None
        if self._has_nodes:
            instance = read_plane(self._file("node", reference, "node"), "I;16", SIZE).astype(np.int32)
        else:
            edge = _edge(self._file("boundary", reference, "instance_boundary"), SIZE)
        return Record(
            key=self.key(reference),
            image=image,
            depth=_metres(self._file("depth", reference, "depth"), SIZE),
            normal=facing_normals(stored @ _PBRS_FRAME, pixel_rays(CAMERA, *SIZE[::-1])),
            instance=instance,
            edge=edge,
            camera=CAMERA,
        )

    def passed_over(self) -> dict[str, PassedOver]:
        """What the release is not known to hold, and where its list and its images do not agree."""
        tally = Tally()
        listed = set(self._listed()) if is_regular(self._root / GOOD_FRAMES) else None
        for frame in listed or ():
            if not is_regular(self._file("mlt", frame, "mlt")):
                tally.add(NOT_THERE, frame)
        folders = {folder.relative_to(self._root).as_posix() for folder in self._folders.values()}
        rooms = "|".join("" if folder == "." else f"{re.escape(folder)}/" for folder in sorted(folders))
        used = re.compile(f"(?:{rooms})(?:{_FILES})|{re.escape(GOOD_FRAMES)}")
        below = _below(self.path, self._root)

        def is_used(path: str) -> bool:
            if used.fullmatch(below(path)) is None:
                return False
            room, _, name = path.rpartition("/")
            frame = f"{room[-32:]}/{name.removesuffix('_mlt.png')}"
            if listed is not None and name.endswith("_mlt.png") and frame not in listed:
                tally.add(UNNAMED, path)
            return True

        return census.passed_over(self.path, is_used, tally)

    def _file(self, archive: str, reference: str, ending: str) -> Path:
        return self._folders[archive] / f"{reference}_{ending}.png"

    def _listed(self) -> Iterator[str]:
        path = self._root / GOOD_FRAMES
        try:
            for number, frame in numbered_lines(path):
                if not _REFERENCE.fullmatch(frame):
                    raise DataError("a list of frames is damaged", where=f"{path}:{number}", seen=frame[:80])
                yield frame
        except (OSError, UnicodeDecodeError) as error:
            raise DataError("a list of frames cannot be read", where=path, seen=str(error)) from error


def _small_root(path: Path) -> Path | None:
    """The folder of the four planes: the path, one of that name in it, or the one above it."""
    whole = whole_path(path)
    roots = [path, path / "suncg_image", *([whole.parent] if whole.name in PLANES else [])]
    return next((root for root in roots if _has_planes(root) and _holds(root / "mlt", "_256.png")), None)


def _has_planes(root: Path) -> bool:
    return all(is_folder(root / plane) for plane in PLANES)


def _release_root(path: Path) -> Path | None:
    """The folder of the archives or of the rooms: the path, one of their usual names in it, or the one above it."""
    whole = whole_path(path)
    if whole.name in {f"{name}_v2" for name in ARCHIVES} and is_folder(whole.parent / "mlt_v2"):
        roots = [whole.parent]
    else:
        roots = [path, path / "pbrs", path / "projects_render"]
    holding = (root for root in roots if _holds(_archive(root, "mlt"), "_mlt.png") or _holds(root, "_mlt.png"))
    return next(holding, None)


def _archive(root: Path, name: str) -> Path:
    """The folder of rooms of an archive; some programs unpack it into a folder of its name, one level deeper."""
    folder = root / f"{name}_v2"
    deeper = folder / folder.name
    return deeper if is_folder(deeper) else folder


def _below(path: Path, root: Path) -> Callable[[str], str]:
    """What makes a path below one folder a path below another, which is it, in it, or the one above it."""
    if root == path or path in root.parents:
        prefix = "" if root == path else f"{root.relative_to(path).as_posix()}/"
        return lambda name: name.removeprefix(prefix) if name.startswith(prefix) else f"../{name}"
    return lambda name: f"{whole_path(path).name}/{name}"


def _frames(folder: Path, ending: str) -> Iterator[str]:
    """`ROOM/FRAME` of the files with this ending."""
    name = re.compile(rf"([0-9]{{6}}){re.escape(ending)}")
    for room in matching_names(folder, _ROOM):
        for frame in matching_names(folder / room, name):
            yield f"{room}/{frame[:6]}"


def _holds(folder: Path, ending: str) -> bool:
    """One of the first rooms has files with this ending."""
    name = re.compile(rf"[0-9]{{6}}{re.escape(ending)}")
    return any(matching_names(folder / room, name) for room in matching_names(folder, _ROOM)[:_ROOMS])


def _metres(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    return read_plane(path, "I;16", size).astype(np.float32) / np.float32(1000)


def _edge(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    return read_plane(path, ("L", "1"), size) > 0


def _frame(
    stored: NDArray[np.float32], depth: NDArray[np.float32], camera: Intrinsics, path: Path
) -> NDArray[np.float32]:
    """The frame in which these normals fit the depth."""
    stored, computed = stored_and_computed(stored, depth, camera)
    if len(stored) < _ENOUGH_PIXELS:
        return _PBRS_FRAME
    pbrs, script = (float(((stored @ frame) * computed).sum(axis=1).mean()) for frame in (_PBRS_FRAME, _SCRIPT_FRAME))
    if max(pbrs, script) < _POOR_FIT:
        raise DataError(
            "the normals of an image do not fit its depth",
            where=path,
            seen=f"mean cosine {pbrs:.2f} in the frame of the release, {script:.2f} in that of the authors' script",
            expected=f"one of them to be {_POOR_FIT} or more",
        )
    return _PBRS_FRAME if pbrs >= script else _SCRIPT_FRAME
