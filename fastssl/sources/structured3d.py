"""Layout `structured3d`: Structured3D (Zheng et al., ECCV 2020), the perspective renderings of furnished rooms.

    scene_XXXXX/2D_rendering/ROOM/perspective/full/POSITION/
        rgb_rawlight.png      8-bit RGB, 1280 x 720
        depth.png             16-bit gray, millimetres, 0 = not known
        normal.png            8-bit RGB, 128 (1 + n), gray = not known
        instance.png          16-bit gray, object identities, 65535 = background
        camera_pose.txt       eye (3), view direction (3), up (3), then half of the horizontal and of the vertical
                              field of view in radians, and a 1

Origin of these facts: `data_organization.md` of the dataset's repository, bertjiazheng/Structured3D, and its issues.
Panoramas, which may lie in the same tree, and the unfurnished rooms (`empty`) are not read: no contours there.

Each archive holds the folder `Structured3D` with its scenes. Who unpacks them into folders of their own, side by side,
has one dataset in several places, and it is read as one; a rendering that lies in several counts once.

Depth is planar: the dataset's author calls a cloud of points right that was made from it as such (issue 11), and at
least one other importer says to have verified it. At the border of objects it is a mix of both sides, as the author
says there.

The field of view reaches to the borders of the image, so the principal point is its centre, width / 2 and height / 2
where a pixel's centre lies at its index plus one half.

Normals: their frame is documented nowhere, but in issue 61 the author writes that red is along the view, green upwards,
and blue completes a left-handed frame: left. Here that is (right, down, forward) = (-blue, -green, red). As this was
said of the panoramas, every image is checked: normals are derived from its depth where that is smooth, and if they fit
`normal.png` better in another order or with other signs of its axes, or do not fit at all, the image is refused with
the order that would fit. What is not of unit length (no surface, or a mix of two at a border) or does not face the
camera is not known.

Instances are the objects that have a 3D box. Everything else is background, 65535, which takes in walls, floors and
ceilings as far as known, so no contour separates these. An object's border to the background is a contour like any
other. As identities are rendered, each pixel has one, and no unlabelled ribbon that would draw a border twice is known.

Six scenes that the dataset's `metadata/errata.txt` calls invalid are left out. The rooms of that list are not: it is
about their floor plans, which are not used here. Scenes 01600 to 01799 are missing from the published archives (issue
30: archive 08 holds the scenes of archive 09).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from itertools import permutations, product, takewhile
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import pixel_rays
from fastssl.shards import DomainName, PassedOver, Tally
from fastssl.sources import census
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.keys import key_of, reference_parts
from fastssl.sources.listing import matching_names
from fastssl.sources.lists import numbered_lines
from fastssl.sources.normals import facing_normals, stored_and_computed, unit_normals
from fastssl.sources.opening import checked_subset, first_reference, whole_path
from fastssl.sources.regular import is_folder

SUBSETS = {"train": range(3000), "val": range(3000, 3250), "test": range(3250, 3500)}
"""Numbers of the scenes, as the dataset's README splits them."""

INVALID_SCENES = frozenset({1155, 1192, 1714, 1816, 1852, 3398})

_SCENE = re.compile(r"scene_([0-9]{5})")
_NUMBER = re.compile(r"[0-9]+")
_POSE_NUMBERS = 12

_UNPACKED = re.compile(r"structured3d.*", re.IGNORECASE)
"""Folders that archives were unpacked into: `Structured3D`, or `Structured3D_perspective_full_00`."""
_PERSPECTIVE = re.compile(
    r"(?P<folder>scene_(?P<number>[0-9]{5})/2D_rendering/[0-9]+/perspective/full/[0-9]+)/rgb_rawlight\.png"
)
_IMAGES = r"(rgb_(rawlight|coldlight|warmlight)|semantic|instance|albedo|depth|normal)\.png"
_KNOWN = re.compile(
    r"scene_[0-9]{5}/(bbox_3d\.json|annotation_3d\.json|2D_rendering/[0-9]+/("
    rf"perspective/(empty|full)/[0-9]+/({_IMAGES}|layout\.json|camera_pose\.txt)"
    rf"|panorama/((empty|simple|full)/{_IMAGES}|layout\.txt|camera_xyz\.txt)))"
)
"""Files below the folder of the scenes that the dataset consists of, by its `data_organization.md`."""

INVALID = "images of scenes that the dataset calls invalid"
TWICE = "images that another folder of scenes has too"

# Rows: what red, green and blue mean, as vectors (right, down, forward).
_FRAME = np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], np.float32)
_SIGNED_ORDERS = tuple(product(permutations(range(3)), product((1, -1), repeat=3)))
_ENOUGH_PIXELS = 64
_BETTER_FIT = 0.1
_POOR_FIT = 0.5


class Structured3DSource:
    """The perspective renderings in one folder; a reference is `SCENE/ROOM/POSITION`, as in `scene_00000/485142/0`.

    Before it stands the path of the folder of scenes, if that lies below the given one.

    Args:
        path: the folder of the scenes, `Structured3D` in the dataset's archives, or the one that holds it or several
            unpacked archives, or one scene.
        subset: `train`, `val` or `test`; None takes all scenes in the folder.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no perspective renderings (of the subset).
    """

    layout: ClassVar[str] = "structured3d"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "Structured3D Terms of Use"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """A folder of scenes, the first of which have perspective renderings."""
        base, homes = _homes(path)
        for home, scenes in homes.items():
            for scene in scenes[:10]:
                folder = base / home / scene
                if any(is_folder(_renderings(folder, room)) for room in _rooms(folder)):
                    return f"{home}{scene} has perspective renderings"
        return None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, SUBSETS)
        first_reference(
            self,
            "perspective renderings of Structured3D",
            expected="scene_XXXXX/2D_rendering/ROOM/perspective/full/POSITION",
            hint="unpack Structured3D_perspective_full_*.zip and give the folder of the scenes",
        )

    def references(self) -> Iterator[str]:
        """Views in the order of scene, room and position; one folder's names at a time."""
        wanted = range(100_000) if self.subset is None else SUBSETS[self.subset]
        base, homes = _homes(self.path)
        for scene in sorted({scene for scenes in homes.values() for scene in scenes}):
            number = int(_SCENE.sub(r"\1", scene))
            if number in wanted and number not in INVALID_SCENES:
                places: dict[tuple[str, str], str] = {}
                for home in homes:
                    for room in _rooms(base / home / scene):
                        for position in matching_names(_renderings(base / home / scene, room), _NUMBER):
                            places.setdefault((room, position), home)
                for (room, position), home in sorted(places.items()):
                    yield f"{home}{scene}/{room}/{position}"

    def key(self, reference: str) -> str:
        """Scene, room and position with `__` for every slash."""
        return key_of("/".join(reference.rsplit("/", 3)[-3:]) + ".jpg")

    def read(self, reference: str) -> Record:
        """One rendering.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else, or the axes of its normals
                are not those that this layout knows; the error names the file.
        """
        reference_parts(reference, "SCENE/ROOM/POSITION")
        scene, room, position = reference.rsplit("/", 2)
        base, _ = _base(self.path)
        folder = _renderings(base / scene, room) / position
        image = read_image(folder / "rgb_rawlight.png")
        height, width, _ = image.shape
        camera = _read_camera(folder / "camera_pose.txt", height, width)
        depth = read_plane(folder / "depth.png", "I;16", (width, height)).astype(np.float32) / np.float32(1000)
        codes = read_plane(folder / "normal.png", "RGB", (width, height))
        instance = read_plane(folder / "instance.png", "I;16", (width, height))
        normal = unit_normals(codes.astype(np.float32) / np.float32(128) - np.float32(1)) @ _FRAME
        _check_frame(normal, depth, camera, folder / "normal.png")
        return Record(
            key=self.key(reference),
            image=image,
            depth=depth,
            normal=facing_normals(normal, pixel_rays(camera, height, width)),
            instance=instance.astype(np.int32),
            camera=camera,
        )

    def passed_over(self) -> dict[str, PassedOver]:
        """What does not belong to the dataset, its invalid scenes, and renderings that lie in several places."""
        tally = Tally()
        base, homes = _homes(self.path)
        below = "" if base == self.path else f"{whole_path(self.path).name}/"

        def is_used(path: str) -> bool:
            home = next((home for home in reversed(homes) if (below + path).startswith(home)), "")
            inside = (below + path).removeprefix(home)
            image = _PERSPECTIVE.fullmatch(inside)
            if image is not None and int(image["number"]) in INVALID_SCENES:
                tally.add(INVALID, path)
            elif image is not None:
                before = takewhile(lambda other: other != home, homes)
                if any(is_folder(base / other / image["folder"]) for other in before):
                    tally.add(TWICE, path)
            return _KNOWN.fullmatch(inside) is not None

        return census.passed_over(self.path, is_used, tally)


def _base(path: Path) -> tuple[Path, re.Pattern[str]]:
    """The folder that paths of scenes are relative to, and which names of scenes count."""
    whole = whole_path(path)
    if _SCENE.fullmatch(whole.name):
        return whole.parent, re.compile(whole.name)
    return path, _SCENE


def _homes(path: Path) -> tuple[Path, dict[str, list[str]]]:
    """What references are relative to; and the folders of scenes below it, with a slash behind, and their scenes."""
    base, pattern = _base(path)
    folders = [""]
    if pattern is _SCENE:
        for name in matching_names(base, _UNPACKED):
            folders += [f"{name}/", *(f"{name}/{below}/" for below in matching_names(base / name, _UNPACKED))]
    homes = {folder: matching_names(base / folder, pattern) for folder in folders}
    return base, {folder: scenes for folder, scenes in homes.items() if scenes}


def _rooms(scene: Path) -> list[str]:
    return matching_names(scene / "2D_rendering", _NUMBER)


def _renderings(scene: Path, room: str) -> Path:
    return scene / "2D_rendering" / room / "perspective" / "full"


def _read_camera(path: Path, height: int, width: int) -> Intrinsics:
    try:
        text = " ".join(line for _, line in numbered_lines(path))
        numbers = [float(word) for word in text.split()]
    except FileNotFoundError as error:
        raise DataError("a file of a rendering is missing", where=path) from error
    except (OSError, ValueError) as error:
        raise DataError("a camera cannot be read", where=path, seen=str(error)) from error
    if len(numbers) != _POSE_NUMBERS or not all(0 < half < math.pi / 2 for half in numbers[9:11]):
        raise DataError(
            "a camera is not what its dataset says",
            where=path,
            seen=text,
            expected=f"{_POSE_NUMBERS} numbers, of which the tenth and eleventh are half angles below pi / 2",
        )
    x_half, y_half = numbers[9:11]
    return Intrinsics(fx=width / 2 / math.tan(x_half), fy=height / 2 / math.tan(y_half), cx=width / 2, cy=height / 2)


def _check_frame(normal: NDArray[np.float32], depth: NDArray[np.float32], camera: Intrinsics, path: Path) -> None:
    """Refuse normals whose axes are others than `_FRAME` says, by the slopes of the depth."""
    stored, computed = stored_and_computed(normal, depth, camera)
    if len(stored) < _ENOUGH_PIXELS:
        return
    # Row i, column j: the mean product of what is called i and what the depth says of j.
    together = (stored.T @ computed) / len(stored)
    fits = {(order, signs): float((together[range(3), order] * signs).sum()) for order, signs in _SIGNED_ORDERS}
    assumed = fits[(0, 1, 2), (1, 1, 1)]
    best = max(fits, key=lambda key: fits[key])
    if fits[best] - assumed > _BETTER_FIT or assumed < _POOR_FIT:
        raise DataError(
            "the normals of a rendering do not fit its depth",
            where=path,
            seen=f"mean cosine {assumed:.2f} with {_described(_FRAME)}; {fits[best]:.2f} with {_described(_as(*best))}",
            expected=f"the first to be {_POOR_FIT} or more, and the best",
            hint="if other renderings say the same, the dataset's normals have other axes than this version knows",
        )


def _as(order: tuple[int, ...], signs: tuple[int, ...]) -> NDArray[np.float32]:
    """The frame in which stored normals would be right, given how their axes must be taken instead."""
    exchange = np.zeros((3, 3), np.float32)
    exchange[range(3), order] = signs
    return _FRAME @ exchange


def _described(frame: NDArray[np.float32]) -> str:
    """(right, down, forward) in terms of the channels."""
    names = np.array(["red", "green", "blue"])
    channels = np.abs(frame).argmax(axis=0)
    signs = ["-" if frame[channel, axis] < 0 else "" for axis, channel in enumerate(channels)]
    return f"({', '.join(sign + name for sign, name in zip(signs, names[channels], strict=True))})"
