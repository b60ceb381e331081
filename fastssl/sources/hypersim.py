"""Layout `hypersim`: Hypersim (Roberts et al., ICCV 2021), photorealistic interiors at 1024 x 768.

    metadata_camera_parameters.csv          of every scene's lens; needed
    metadata_images_split_scene_v1.csv      which images are train, val and test; needed for a subset
    ai_VVV_NNN/images/
        scene_cam_XX_final_hdf5/frame.IIII.color.hdf5                   (H, W, 3) float16, linear light
        scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5         (H, W) float16, NaN = background
        scene_cam_XX_geometry_hdf5/frame.IIII.normal_cam.hdf5           (H, W, 3) float16, NaN = background
        scene_cam_XX_geometry_hdf5/frame.IIII.semantic_instance.hdf5    (H, W) int16, -1 = none

Every HDF5 file holds one array named `dataset`. The scenes may lie in a folder `scenes`, as in the dataset's own tools.
The tables are looked for in the given folder, in the one above it, and in `analysis` in each.

Origin of these facts: README, tools and issues of the dataset's repository, apple/ml-hypersim. The two tables lie there
under `contrib/mikeroberts3000` and `evermotion_dataset/analysis`.

Depth is the distance from the camera's centre, in spite of its name, and becomes planar z. Its 11 bits make steps of
2 mm at 3 m and 4 mm at 6 m, so it is off by up to 0.05 %.

The lens is a scene's own, and many are tilt-shift lenses (17 of the 21 scenes from ai_039_006 to ai_043_002, tilted by
up to 14 degrees). The usual camera of 60 degrees would be wrong for them without a sign of it, so no scene is read
without its row of the table. `M_cam_from_uv` takes (u, v, 1), u to the right and v upwards, both from -1 to 1 between
the borders of the image, to a ray in the camera's frame (x right, y up, z backward). Its first two columns span the
image plane. A camera sees the same picture whichever way its frame is turned, so the frame handed on is the one whose Z
axis is perpendicular to that plane: in it the picture is an ordinary perspective picture, whose principal point lies
off its centre. Depth is measured along this axis, and normals, which are stored in the frame of the untilted lens, are
turned with it. A lens that is tilted both ways has columns that are not perpendicular (by 1.0 degrees in the worst of
those rows). X and Y then are as close as they can be to both; labels follow the true rays, and the intrinsics, which
know no skew, are off by up to 0.3 degrees.

Normals are of the mesh, without bump mapping, as the scene's artist made them: some surfaces are modelled inside out
(issue 26). These are turned over. Normals that look away by less than 10 degrees are not known: they come from
shading that is smoother than the surface, and their opposite would be far from the truth. So are ones of less than
half the unit length.

Instances are `semantic_instance`: objects as people labelled them. `render_entity_id` has the parts that an artist
happened to make, which the dataset's author calls not meaningful (issue 34). What nobody labelled shares -1 with the
background. Parts of the scenes were labelled and no pixels, so what is -1 are whole things, and a border to them is one
contour; unlabelled ribbons along borders are not to be expected, which was not verified on the data.

Images are tone mapped as the dataset's own previews are: scaled so that the 90th percentile of brightness over all
pixels but the background becomes 0.8, with a gamma of 2.2.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.files import open_regular
from fastssl.shards import DomainName, PassedOver, Tally
from fastssl.sources import census
from fastssl.sources.hdf5 import open_hdf5
from fastssl.sources.keys import key_of, reference_parts
from fastssl.sources.listing import matching_names
from fastssl.sources.opening import checked_subset, first_reference, whole_path
from fastssl.sources.regular import is_regular

CAMERAS = "metadata_camera_parameters.csv"
SPLIT = "metadata_images_split_scene_v1.csv"
SUBSETS = ("train", "val", "test")

_REPOSITORY = {
    CAMERAS: f"apple/ml-hypersim, contrib/mikeroberts3000/{CAMERAS}",
    SPLIT: f"apple/ml-hypersim, evermotion_dataset/analysis/{SPLIT}",
}
_SCENE = re.compile(r"ai_[0-9]{3}_[0-9]{3}")
_FINAL = re.compile(r"scene_(cam_[0-9]{2})_final_hdf5")
_COLOR = re.compile(r"frame\.([0-9]{4})\.color\.hdf5")
_HOMES = ("", "scenes/")
"""Where the scenes may be; the first counts that has some."""
_IMAGE = re.compile(
    r"(?P<scene>ai_[0-9]{3}_[0-9]{3})/images/scene_(?P<camera>cam_[0-9]{2})_final_hdf5"
    r"/frame\.(?P<frame>[0-9]{4})\.color\.hdf5"
)
_KNOWN = re.compile(
    r"ai_[0-9]{3}_[0-9]{3}/(_detail/.*\.(csv|hdf5)"
    r"|images/scene_cam_[0-9]{2}_(final|geometry)_(hdf5/frame\.[0-9]{4}\.[a-z_]+\.hdf5"
    r"|preview/frame\.[0-9]{4}\.[a-z_.]+\.(jpg|png)))"
)
"""Files below the folder of the scenes that the dataset consists of."""

WITHHELD = f"frames that {SPLIT} does not release"

_BRIGHTNESS = np.array([0.3, 0.59, 0.11], np.float32)
_GAMMA = 2.2
_BRIGHTEST = float(np.finfo(np.float16).max)
_GRAZING = np.float32(np.sin(np.radians(10)))
_SHORTEST = np.float32(0.5)


class HypersimSource:
    """The frames in one folder; a reference is `SCENE/CAMERA/FRAME`, as in `ai_001_001/cam_00/0000`.

    Before it stands `scenes/`, if the scenes lie there.

    Frames that the table of the split marks as not released are left out, if that table is there.

    Args:
        path: the folder of the scenes and of the two tables, or one scene.
        subset: `train`, `val` or `test` of the split; None takes every frame in the folder.

    Raises:
        UsageError: there is no such subset.
        DataError: the folder holds no frames (of the subset), or a table is missing or damaged.
    """

    layout: ClassVar[str] = "hypersim"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "CC-BY-SA-3.0"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """A folder of scenes, one of which has rendered images."""
        base, scenes = _scenes(path)
        first = next((scene for scene in scenes if matching_names(base / scene / "images", _FINAL)), None)
        return None if first is None else f"{first} has rendered images"

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, SUBSETS)
        self._split = self._table(SPLIT)
        first_reference(
            self, "frames of Hypersim", expected="ai_VVV_NNN/images/scene_cam_XX_final_hdf5/frame.IIII.color.hdf5"
        )
        self._cameras = self._table(CAMERAS)
        self._lenses = _lenses(self._cameras)

    def references(self) -> Iterator[str]:
        """Frames in the order of scene, camera and number; one folder's names at a time."""
        released = self._released(self.subset)
        base, scenes = _scenes(self.path)
        for scene in scenes:
            images = base / scene / "images"
            for folder in matching_names(images, _FINAL):
                camera = _FINAL.sub(r"\1", folder)
                for name in matching_names(images / folder, _COLOR):
                    frame = _COLOR.sub(r"\1", name)
                    if _is_released(released, _name(scene), camera, frame):
                        yield f"{scene}/{camera}/{frame}"

    def key(self, reference: str) -> str:
        """Scene, camera and frame with `__` for every slash."""
        return key_of("/".join(reference.rsplit("/", 3)[-3:]) + ".jpg")

    def read(self, reference: str) -> Record:
        """One frame.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else, or the table of lenses lacks
                its scene; the error names the file.
        """
        reference_parts(reference, "SCENE/CAMERA/FRAME")
        scene, camera, frame = reference.rsplit("/", 2)
        lens = self._lens(_name(scene))
        base, _ = _scenes_below(self.path)
        images = base / scene / "images"
        color = _read_array(images / f"scene_{camera}_final_hdf5" / f"frame.{frame}.color.hdf5", "f", (None, None, 3))
        height, width, _ = color.shape
        geometry = images / f"scene_{camera}_geometry_hdf5"
        distance = _read_array(geometry / f"frame.{frame}.depth_meters.hdf5", "f", (height, width))
        normal = _read_array(geometry / f"frame.{frame}.normal_cam.hdf5", "f", (height, width, 3))
        instance = _read_array(geometry / f"frame.{frame}.semantic_instance.hdf5", "i", (height, width))
        rays = lens.rays(height, width)
        return Record(
            key=self.key(reference),
            image=_tone_mapped(color, ~np.isnan(distance)),
            depth=_planar(distance, rays),
            normal=_facing(lens.turned(normal), rays),
            instance=instance.astype(np.int32),
            camera=lens.intrinsics(height, width),
        )

    def passed_over(self) -> dict[str, PassedOver]:
        """What does not belong to the dataset, and frames that the table of the split does not release."""
        tally, released = Tally(), self._released(None)
        base, scenes = _scenes(self.path)
        below = "" if base == self.path else f"{whole_path(self.path).name}/"
        home = scenes[0].removesuffix(_name(scenes[0])) if scenes else ""

        def is_used(path: str) -> bool:
            inside = (below + path).removeprefix(home)
            image = _IMAGE.fullmatch(inside)
            if image is not None and not _is_released(released, image["scene"], image["camera"], image["frame"]):
                tally.add(WITHHELD, path)
            return _KNOWN.fullmatch(inside) is not None or path.removeprefix("analysis/") in _REPOSITORY

        return census.passed_over(self.path, is_used, tally)

    def _table(self, name: str) -> Path:
        """Where a table is, or if it is nowhere, where it ought to be."""
        base, _ = _scenes_below(self.path)
        tops = (self.path, base, whole_path(base).parent)
        paths = (top / folder / name for top in tops for folder in ("", "analysis"))
        return next(filter(is_regular, paths), self.path / name)

    def _released(self, subset: str | None) -> dict[tuple[str, str], set[int]] | None:
        """Numbers of the frames to use, by scene and camera; None for any."""
        if subset is None and not is_regular(self._split):
            return None
        frames: dict[tuple[str, str], set[int]] = {}
        columns = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")
        for scene, camera, frame, released, partition in _rows(self._split, columns):
            if released == "True" and subset in (None, partition):
                frames.setdefault((scene, camera), set()).add(_whole_number(self._split, frame))
        return frames

    def _lens(self, scene: str) -> _Lens:
        if scene not in self._lenses:
            raise DataError(
                "the table of lenses lacks a scene",
                where=self._cameras,
                seen=scene,
                hint=f"copy the whole table from {_REPOSITORY[CAMERAS]}",
            )
        return self._lenses[scene]


def _scenes_below(path: Path) -> tuple[Path, re.Pattern[str]]:
    """The folder that paths of scenes are relative to, and which names of scenes count."""
    whole = whole_path(path)
    return (whole.parent, re.compile(whole.name)) if _SCENE.fullmatch(whole.name) else (path, _SCENE)


def _scenes(path: Path) -> tuple[Path, list[str]]:
    """What paths of scenes are relative to, and these paths; they begin alike."""
    base, pattern = _scenes_below(path)
    homes = ([home + scene for scene in matching_names(base / home, pattern)] for home in _HOMES)
    return base, next(filter(None, homes), [])


def _is_released(released: dict[tuple[str, str], set[int]] | None, scene: str, camera: str, frame: str) -> bool:
    return released is None or int(frame) in released.get((scene, camera), ())


def _name(scene: str) -> str:
    return scene.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Lens:
    """A lens as a pinhole camera whose optical axis is perpendicular to the image plane."""

    axes: NDArray[np.float64]
    """(3, 3) rows: this camera's X (right), Y (down) and Z (forward) in the dataset's camera frame."""
    ray_from_uv: NDArray[np.float64]
    """(3, 3) from (u, v, 1) to a ray with z = 1 in this camera's frame."""

    def rays(self, height: int, width: int) -> NDArray[np.float32]:
        """(height, width, 3) true rays through the pixels' centres, z = 1."""
        u = (2 * np.arange(width) + 1) / width - 1
        v = 1 - (2 * np.arange(height) + 1) / height
        along_u, along_v, centre = self.ray_from_uv.T
        columns, rows = np.outer(u, along_u) + centre, np.outer(v, along_v)
        rays: NDArray[np.float32] = columns.astype(np.float32)[None] + rows.astype(np.float32)[:, None]
        return rays

    def intrinsics(self, height: int, width: int) -> Intrinsics:
        """The camera without its skew."""
        (along_u, _, centre_x), (_, along_v, centre_y), _ = self.ray_from_uv.tolist()
        return Intrinsics(
            fx=width / 2 / along_u,
            fy=-height / 2 / along_v,
            cx=width / 2 * (1 - centre_x / along_u),
            cy=height / 2 * (1 + centre_y / along_v),
        )

    def turned(self, normal: NDArray[np.floating]) -> NDArray[np.float32]:
        """Normals from the dataset's frame into this one; whatever is not finite becomes zero."""
        finite = np.nan_to_num(normal.astype(np.float32), nan=0, posinf=0, neginf=0)
        return finite @ self.axes.T.astype(np.float32)


def _lens_of(cam_from_uv: NDArray[np.float64]) -> _Lens:
    """A lens from `M_cam_from_uv`, whose columns are right, up and the centre of the image, in the dataset's frame.

    Raises:
        ValueError: no camera has this matrix.
    """
    # With right and up to the picture's right and top, and a centre before the camera, the columns are left-handed.
    if not (np.isfinite(cam_from_uv).all() and np.linalg.det(cam_from_uv) < -1e-9):
        raise ValueError(f"M_cam_from_uv {cam_from_uv.tolist()}")
    in_plane = cam_from_uv[:, :2] * [1, -1]
    in_plane /= np.linalg.norm(in_plane, axis=0)
    # The closest pair of perpendicular unit vectors; the vectors themselves if the lens has no skew.
    left, _, right = np.linalg.svd(in_plane, full_matrices=False)
    x, y = (left @ right).T
    axes = np.stack([x, y, np.cross(x, y)])
    ray_from_uv = axes @ cam_from_uv
    return _Lens(axes, ray_from_uv / ray_from_uv[2, 2])


def _lenses(table: Path) -> dict[str, _Lens]:
    columns = ["scene_name", *(f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3))]
    lenses = {}
    for scene, *entries in _rows(table, columns):
        try:
            lenses[scene] = _lens_of(np.array([_number(table, entry) for entry in entries]).reshape(3, 3))
        except ValueError as error:
            raise DataError("a scene's lens is not one", where=f"{table}: {scene}", seen=str(error)) from error
    return lenses


def _rows(table: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """These columns of every row of a CSV file."""
    hint = f"copy it from {_REPOSITORY[table.name]}"
    try:
        with open_regular(table) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines)
            names = [name.strip() for name in next(rows, [])]
            missing = [name for name in columns if name not in names]
            if missing:
                raise DataError("a table lacks a column", where=table, seen=names, expected=missing[0], hint=hint)
            places = [names.index(name) for name in columns]
            for row in rows:
                if any(map(str.strip, row)):
                    yield [row[place].strip() if place < len(row) else "" for place in places]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("a table cannot be read", where=table, seen=str(error), hint=hint) from error


def _number(table: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError("a table is damaged", where=table, seen=repr(text), expected="a number") from error


def _whole_number(table: Path, text: str) -> int:
    number = _number(table, text)
    if not number.is_integer():
        raise DataError("a table is damaged", where=table, seen=repr(text), expected="a whole number")
    return int(number)


def _read_array(path: Path, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The array of a file; `kind` is `f` for floats or `i` for integers with a sign, None in `shape` is any size."""
    with open_hdf5(path) as file:
        array: NDArray[Any] = np.asarray(file["dataset"])
    fits = len(array.shape) == len(shape)
    fits = fits and all(wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True))
    if array.dtype.kind != kind or not fits:
        raise DataError(
            "a file of a frame is not what its dataset says",
            where=path,
            seen=f"{array.dtype} of shape {array.shape}",
            expected=f"{'floats' if kind == 'f' else 'integers'} of shape {shape}",
        )
    return array


def _planar(distance: NDArray[np.floating], rays: NDArray[np.float32]) -> NDArray[np.float32]:
    depth: NDArray[np.float32] = distance.astype(np.float32) / _length(rays)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return depth


def _facing(normal: NDArray[np.float32], rays: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit normals that face the camera, zero where they are not known."""
    length = _length(normal)
    away = np.einsum("hwc,hwc->hw", normal, rays)
    grazing = (away >= 0) & (away <= _GRAZING * length * _length(rays))
    factor = np.divide(np.where(away > 0, np.float32(-1), np.float32(1)), np.maximum(length, _SHORTEST))
    factor[grazing | (length < _SHORTEST)] = 0
    unit: NDArray[np.float32] = normal * factor[:, :, None]
    return unit


def _length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length: NDArray[np.float32] = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))
    return length


def _tone_mapped(color: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Linear light to 8 bits by the dataset's `scene_generate_images_tonemap.py`, rounded instead of cut off."""
    light = np.nan_to_num(color.astype(np.float32), nan=0, posinf=_BRIGHTEST, neginf=0)
    scale = np.float32(1)
    if valid.any():
        brightness = np.percentile((light @ _BRIGHTNESS)[valid], 90)
        scale = np.float32(0.8**_GAMMA / brightness if brightness >= 1e-4 else 0)
    mapped: NDArray[np.float32] = np.clip(scale * light, 0, 1) ** np.float32(1 / _GAMMA)
    return np.rint(255 * mapped).astype(np.uint8)
