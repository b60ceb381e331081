"""Layout `render`: rooms rendered by `fastssl render`, one folder per run.

    render.json            how all rooms were made: `RenderRun`
    KEY_rgb.png            8-bit RGB
    KEY_depth.png          16-bit gray, planar depth in millimetres, 0 = not known
    KEY_normal.png         8-bit RGB, round(127.5 (n + 1)) in 1..255 per axis, (0, 0, 0) = not known
    KEY_instance.png       16-bit gray, object identities
    KEY.json               size and intrinsics; written last, so a room that has it has all planes

Identities are rendered, one a pixel: no pixel is without one, and each border is one contour.

Normals lose 0.39 degrees at most (0.17 on average), and as much again when they are packed with the same codes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.files import complete_or_absent, open_regular
from fastssl.shards import DomainName, PassedOver, Tally
from fastssl.sources import census
from fastssl.sources.images import read_plane
from fastssl.sources.opening import checked_subset
from fastssl.sources.regular import is_folder, is_regular

RUN = "render.json"
PLANES = ("rgb", "depth", "normal", "instance")
UNFINISHED = "planes of rooms that are not finished"

_MODES = {"rgb": "RGB", "depth": "I;16", "normal": "RGB", "instance": "I;16"}
_PLANE = re.compile(rf"(?P<key>[^/]+)_({'|'.join(PLANES)})\.png")
_LARGEST = 65535

_Model = TypeVar("_Model", bound=BaseModel)


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RenderRun(_Described):
    """Everything, besides their numbers, that the rooms of one folder depend on."""

    format: Literal["fastssl-render-1"] = "fastssl-render-1"
    seed: int = Field(ge=0)
    size: int = Field(ge=1)
    """Side of the images in pixels."""
    spp: int = Field(ge=1)
    """Light paths per pixel."""
    variant: str
    """Mitsuba's way of computing."""
    mitsuba: str
    fastssl: str
    """Versions."""
    camera: str = "X right, Y down, Z forward; pixel centres at index + 0.5; depth along Z"
    licence: str = "CC0-1.0"


class _Camera(_Described):
    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float


class _Room(_Described):
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    camera: _Camera


class RenderSource:
    """The finished rooms of one folder; a reference is a room's key.

    Args:
        path: the folder of a run.
        subset: None; there are no splits.

    Raises:
        UsageError: a subset was asked for.
        DataError: there is no such folder, it was not written by `fastssl render`, or it holds no finished room.
    """

    layout: ClassVar[str] = "render"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """The folder of a run: it says how its rooms were made."""
        return f"it has {RUN}" if is_regular(path / RUN) else None

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        self.licence = read_run(self.path).licence
        if next(self._keys(), None) is None:
            raise DataError("the folder holds no finished room", where=self.path, hint="render some: fastssl render")

    def references(self) -> Iterator[str]:
        """Keys of the finished rooms, sorted."""
        return iter(sorted(self._keys()))

    def key(self, reference: str) -> str:
        """The reference itself."""
        return reference

    def read(self, reference: str) -> Record:
        """One room.

        Raises:
            DataError: a file of it is missing, cannot be decoded, or holds something else; the error names the file.
        """
        room = _described(_Room, self.path / f"{reference}.json")
        size = (room.width, room.height)
        planes = {name: read_plane(_plane(self.path, reference, name), _MODES[name], size) for name in PLANES}
        return Record(
            key=reference,
            image=planes["rgb"],
            depth=planes["depth"],
            normal=planes["normal"],
            instance=planes["instance"].astype(np.int32),
            camera=Intrinsics(**room.camera.model_dump()),
        )

    def passed_over(self) -> dict[str, PassedOver]:
        """Whatever is no file of a room, and planes of rooms whose description is not there."""
        tally, keys = Tally(), set(self._keys())

        def is_used(path: str) -> bool:
            plane = _PLANE.fullmatch(path)
            if plane is not None and plane["key"] not in keys:
                tally.add(UNFINISHED, path)
            return plane is not None or path == RUN or (path.endswith(".json") and path.removesuffix(".json") in keys)

        return census.passed_over(self.path, is_used, tally)

    def _keys(self) -> Iterator[str]:
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and entry.name[0] != "." and entry.name != RUN and entry.is_file():
                        yield entry.name.removesuffix(".json")
        except OSError as error:
            raise DataError("a folder cannot be listed", where=self.path, seen=error.strerror) from error


def read_run(folder: Path) -> RenderRun:
    """How the rooms of a folder were made.

    Raises:
        DataError: there is no such folder, or no valid `render.json` in it.
    """
    if not is_folder(folder):
        raise DataError("there is no such folder", where=folder, expected="a folder written by fastssl render")
    return _described(RenderRun, folder / RUN)


def write_run(folder: Path, run: RenderRun) -> None:
    """Write `render.json`, which makes a folder one of this layout."""
    with complete_or_absent(folder / RUN) as file:
        file.write(run.model_dump_json(indent=2).encode() + b"\n")


def is_finished(folder: Path, key: str) -> bool:
    """All files of a room are there."""
    return all(path.is_file() for path in [folder / f"{key}.json", *(_plane(folder, key, name) for name in PLANES)])


def write_room(folder: Path, record: Record) -> None:
    """Write a rendered record; its files appear complete, and the one that makes it count comes last.

    Raises:
        ValueError: the record lacks a plane, or a depth or an identity does not fit into 16 bits.
    """
    if record.depth is None or record.normal is None or record.instance is None or record.camera is None:
        raise ValueError(f"record {record.key} is not synthetic: it lacks a plane or the camera")
    planes: dict[str, NDArray[Any]] = {
        "rgb": record.image,
        "depth": _sixteen_bits(np.rint(record.depth.astype(np.float64) * 1000), f"{record.key}: depth in millimetres"),
        "normal": _codes(record.normal),
        "instance": _sixteen_bits(record.instance, f"{record.key}: instance"),
    }
    for name in PLANES:
        with complete_or_absent(_plane(folder, record.key, name)) as file:
            Image.fromarray(planes[name]).save(file, format="PNG")
    height, width, _ = record.image.shape
    camera = record.camera
    room = _Room(width=width, height=height, camera=_Camera(fx=camera.fx, fy=camera.fy, cx=camera.cx, cy=camera.cy))
    with complete_or_absent(folder / f"{record.key}.json") as file:
        file.write(room.model_dump_json().encode() + b"\n")


def _plane(folder: Path, key: str, name: str) -> Path:
    return folder / f"{key}_{name}.png"


def _described(model: type[_Model], path: Path) -> _Model:
    try:
        with open_regular(path) as file:
            return model.model_validate_json(file.read())
    except OSError as error:
        raise DataError(
            "a file of the render layout cannot be read",
            where=path,
            seen=error.strerror,
            hint="give a folder that fastssl render wrote, or another --layout",
        ) from error
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "a file of the render layout is damaged or of another version",
            where=f"{path}: {place}" if place else path,
            seen=str(first["input"])[:80],
            expected=first["msg"],
        ) from failure


def _sixteen_bits(values: NDArray[Any], what: str) -> NDArray[np.uint16]:
    numbers = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= _LARGEST):
        raise ValueError(f"{what} must lie in 0..{_LARGEST}, it lies in {numbers.min()}..{numbers.max()}")
    return numbers.astype(np.uint16)


def _codes(normal: NDArray[Any]) -> NDArray[np.uint8]:
    codes = np.rint(127.5 * (normal.astype(np.float64) + 1)).clip(1, 255)
    known = (normal != 0).any(axis=2, keepdims=True)
    return np.where(known, codes, 0).astype(np.uint8)
