"""Layout `movi`: MOVi-A to MOVi-F of Kubric (Greff et al., CVPR 2022), videos of falling objects, as TFDS stores them.

    movi_X-SPLIT.tfrecord-NNNNN-of-NNNNN    a `tf.train.Example` per video of F frames, of which these are read:
        video                                   F encoded images, 8-bit RGB
        depth                                   F PNG, 16-bit gray, codes of the distance from the camera's centre
        normal                                  F PNG, 16-bit RGB, floor(65535 (n + 1) / 2) in the world's frame
        segmentations                           F PNG, 8-bit gray, identities, 0 = background
        metadata/depth_range                    metres that the codes 0 and 65535 of the depth mean
        camera/focal_length, camera/sensor_width    in millimetres
        camera/quaternions                      F rotations from camera to world, (w, x, y, z)
    features.json, dataset_info.json        not needed

These files lie in `movi_X/SIZE/VERSION`, as in `movi_e/256x256/1.0.0`. Any folder above them may be given, as long as
there is only one such version below it.

Origin of these facts: google-research/kubric (`challenges/movi/movi_*.py`, `kubric/core/cameras.py`,
`kubric/core/objects.py`, `kubric/renderer/blender_utils.py`) and tensorflow/datasets (its features `Image` and `Video`,
`example_serializer.py`).

Depth is the distance from the camera's centre, computed for pixel centres at index + 0.5, and becomes planar z. Its
range is that of the whole video. Kubric's renderer itself writes float32 TIFF in metres; frames stored so are told by
their mode and taken too. Not known is the depth of points more than 65.535 m away, and all depth of a video that shows
Blender's background, whose distance of 1e10 leaves everything else within one step of the codes.

Identities are rendered, one a pixel, so there are no unlabelled ribbons between objects: the border of an object to the
background, 0, is one contour. Floor and surroundings are both background, and no contour separates these.

The lens has square pixels, and its axis meets the image's middle.

Normals are turned into the camera's frame by the quaternions, and from Blender's camera (x right, y up, looking along
-z) into ours. Not known are those where nothing was hit (all codes 32767), mixes at a border, and those that face away
from the camera, as a shading normal at a silhouette can.

The smaller sizes hold every second (or fourth) pixel of larger label planes beside averages of the image, so their
labels lie up to a quarter of a pixel beside its pixels' centres. That is left as it is: it costs about 0.1 % of the
depth at most.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import depth_from_ray_length, pixel_rays
from fastssl.shards import DomainName, PassedOver
from fastssl.sources import census
from fastssl.sources.images import decode_image, decode_plane
from fastssl.sources.keys import key_of
from fastssl.sources.listing import matching_names
from fastssl.sources.normals import facing_normals, unit_normals
from fastssl.sources.opening import checked_subset
from fastssl.sources.tfrecord import example_features, read_record, record_extents

_FILE = re.compile(r"[a-z_]*movi_[a-f]-(?P<split>[a-z]+)\.tfrecord-[0-9]{5}-of-[0-9]{5}")
_DESCRIPTION = r"features\.json|dataset_info\.json|[^/]+\.labels\.txt"
"""Files of TFDS beside them, which are not needed."""
_BELOW = re.compile(r"movi_[a-f]|[0-9]+x[0-9]+|[0-9]+\.[0-9]+\.[0-9]+")
"""Folders of a variant, a size or a version, one below the other."""
_DEPTH = 3
_REFERENCE = re.compile(r"(?P<file>[^/]+)/(?P<record>[0-9]+)/(?P<frame>[0-9]+)")
_PLANES = ("video", "depth", "normal", "segmentations")
_NUMBERS = ("metadata/depth_range", "camera/focal_length", "camera/sensor_width", "camera/quaternions")
_LARGEST_CODE = 65535
_FARTHEST = 65.535
"""Metres from the camera's centre; farther away is not what a shard can hold."""
_COARSEST_STEP = 0.05
"""Metres between two codes of depth, above which they say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class _Video:
    """What one record holds of F frames; planes are encoded images."""

    planes: dict[str, list[bytes]]
    """F images of each name in `_PLANES`."""
    depth_range: tuple[float, float]
    """Metres, of the codes 0 and 65535."""
    focal_length: float
    """In widths of the image."""
    quaternions: NDArray[np.float64]
    """(F, 4) rotations from the camera's to the world's frame, w first."""

    def __len__(self) -> int:
        return len(self.planes["video"])


class MoviSource:
    """The frames of one variant and size; a reference is `FILE/RECORD/FRAME`.

    Every video of a dataset has the same number of frames, by TFDS's description of its features. Files that are
    missing from a partial download are not missed.

    Args:
        path: the folder of a version, such as `movi_e/256x256/1.0.0`, or one above it.
        subset: a split, `train`, `validation` or `test` (C, D and E have the last); None takes all that are there.

    Raises:
        UsageError: there is no file of this split.
        DataError: the folder holds no TFRecord files of MOVi, or those of several variants, sizes or versions.
    """

    layout: ClassVar[str] = "movi"
    domain: ClassVar[DomainName] = "synthetic"
    labelled: ClassVar[bool] = True
    licence: str = "not stated with the data (Kubric: Apache-2.0, Google Scanned Objects: CC-BY-4.0); check the terms"

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """A folder with TFRecord files of MOVi, itself or in folders of variants, sizes and versions."""
        versions = _versions(path)
        if not versions:
            return None
        others = f", and {len(versions) - 1} more" if len(versions) > 1 else ""
        return f"{versions[0].rstrip('/') or 'it'} has {matching_names(path / versions[0], _FILE)[0]}{others}"

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        versions = _versions(self.path)
        if not versions:
            raise DataError(
                "the folder holds no TFRecord files of MOVi",
                where=self.path,
                expected="files such as movi_e-train.tfrecord-00000-of-01024",
                hint="give the folder of one version, such as movi_e/256x256/1.0.0",
            )
        if len(versions) > 1:
            raise DataError(
                "the folder holds several versions of MOVi",
                where=self.path,
                seen=", ".join(version.rstrip("/") for version in versions),
                expected="one variant in one size and version",
                hint=f"give one of them, such as {self.path / versions[0]}",
            )
        self._below = versions[0]
        self._folder = self.path / self._below
        splits = {split for split, _ in self._files()}
        self.subset = checked_subset(self.layout, subset, sorted(splits))
        self._last: tuple[str, int, _Video] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The video read last, tens of megabytes, stays behind.
        return {**self.__dict__, "_last": None}

    def references(self) -> Iterator[str]:
        """Frames in the order of split, file, record and number.

        Raises:
            DataError: a file is cut short, or the length of a record is damaged; it names file and record.
        """
        frames = 0
        for split, name in self._files():
            if self.subset not in (None, split):
                continue
            for record, _ in enumerate(record_extents(self._folder / name)):
                frames = frames or len(self._video(name, record))
                for frame in range(frames):
                    yield f"{name}/{record:05d}/{frame:02d}"

    def key(self, reference: str) -> str:
        """The reference without what is the same for all."""
        return key_of(reference.replace(".tfrecord", "", 1) + ".jpg")

    def read(self, reference: str) -> Record:
        """One frame.

        Raises:
            DataError: there is no such frame; its record is cut short, damaged or lacks a feature; or an image in it
                does not decode or is of another kind. The error names the file, the record and the feature.
        """
        parts = _REFERENCE.fullmatch(reference)
        if parts is None:
            raise DataError("a reference is not of this dataset", seen=reference, expected="FILE/RECORD/FRAME")
        record, frame = int(parts["record"]), int(parts["frame"])
        video = self._video(parts["file"], record)
        where = f"{self._folder / parts['file']}: record {record}"
        if frame >= len(video):
            raise DataError("a record has no such frame", where=where, seen=frame, expected=f"0 to {len(video) - 1}")
        return _frame(video, frame, where, self.key(reference))

    def passed_over(self) -> dict[str, PassedOver]:
        """Whatever is no file of this version."""
        used = re.compile(f"{re.escape(self._below)}(?:{_FILE.pattern}|{_DESCRIPTION})")
        return census.passed_over(self.path, lambda path: used.fullmatch(path) is not None)

    def _files(self) -> list[tuple[str, str]]:
        """Split and name of each file, sorted."""
        return sorted((_FILE.sub(r"\g<split>", name), name) for name in matching_names(self._folder, _FILE))

    def _video(self, name: str, record: int) -> _Video:
        # Frames are read in a row, and checking and parsing a record costs as much as decoding some of them.
        if self._last is None or self._last[:2] != (name, record):
            path = self._folder / name
            video = _video(read_record(path, record), f"{path}: record {record}")
            self._last = (name, record, video)
        return self._last[2]


def _versions(path: Path) -> list[str]:
    """Folders with TFRecord files of MOVi, relative to the path, each with a slash at its end; or the path itself."""
    found, waiting = [], [""]
    while waiting:
        folder = waiting.pop()
        if matching_names(path / folder, _FILE):
            found.append(folder)
        elif folder.count("/") < _DEPTH:
            waiting += [f"{folder}{name}/" for name in matching_names(path / folder, _BELOW)]
    return sorted(found)


def _video(example: bytes, where: str) -> _Video:
    features = example_features(example, {*_PLANES, *_NUMBERS}, where)
    for name in (*_PLANES, *_NUMBERS):
        if not features.get(name):
            raise DataError("a record lacks a feature", where=f"{where}: {name}", expected="a video of MOVi")
    planes = {name: [bytes(image) for image in features[name]] for name in _PLANES}
    frames = len(planes["video"])
    sizes = dict(zip(_NUMBERS, (2, 1, 1, 4 * frames), strict=True))
    numbers = {name: _floats(features[name], sizes[name], f"{where}: {name}") for name in _NUMBERS}
    for name in _PLANES:
        if len(planes[name]) != frames:
            seen = f"{len(planes[name])} images"
            raise DataError("a video has planes of unlike length", where=f"{where}: {name}", seen=seen, expected=frames)
    low, high = numbers["metadata/depth_range"].tolist()
    focal_length = float(numbers["camera/focal_length"][0] / numbers["camera/sensor_width"][0])
    quaternions = numbers["camera/quaternions"].reshape(frames, 4)
    lengths = np.linalg.norm(quaternions, axis=1, keepdims=True)
    if not (0 <= low <= high and focal_length > 0 and np.abs(lengths - 1).max() < 0.01):
        seen = f"depth range {low} to {high}, focal length {focal_length} widths, quaternions of length {lengths.max()}"
        raise DataError("the camera or the depth range of a video makes no sense", where=where, seen=seen)
    return _Video(planes, (low, high), focal_length, quaternions / lengths)


def _floats(values: list[memoryview], size: int, where: str) -> NDArray[np.float64]:
    data = b"".join(values)
    if len(data) != 4 * size:
        expected = f"{size} float32"
        raise DataError("a feature is not what MOVi has", where=where, seen=f"{len(data)} bytes", expected=expected)
    numbers = np.frombuffer(data, "<f4").astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError("a feature is not a finite number", where=where, seen=numbers.tolist()[:4])
    return numbers


def _frame(video: _Video, frame: int, where: str, key: str) -> Record:
    places = {name: f"{where}: {name}, frame {frame}" for name in _PLANES}
    image = decode_image(video.planes["video"][frame], places["video"])
    height, width, _ = image.shape
    depth, normal, instance = (
        decode_plane(video.planes[name][frame], places[name], mode, (width, height))
        for name, mode in (("depth", ("I;16", "F")), ("normal", "RGB;16"), ("segmentations", "L"))
    )
    focal = video.focal_length * width
    camera = Intrinsics(fx=focal, fy=focal, cx=width / 2, cy=height / 2)
    return Record(
        key=key,
        image=image,
        depth=depth_from_ray_length(_distance(depth, video.depth_range), camera),
        normal=facing_normals(_in_camera(normal, video.quaternions[frame]), pixel_rays(camera, height, width)),
        instance=instance.astype(np.int32),
        camera=camera,
    )


def _distance(stored: NDArray[Any], depth_range: tuple[float, float]) -> NDArray[np.float64]:
    """Metres from uint16 codes of the range, or as they are from float32; 0 = not known."""
    distance = stored.astype(np.float64)
    if stored.dtype == np.uint16:
        low, high = depth_range
        step = (high - low) / _LARGEST_CODE
        distance = distance * step + low if step <= _COARSEST_STEP else np.zeros_like(distance)
    return np.where(distance <= _FARTHEST, distance, 0)


def _in_camera(codes: NDArray[np.uint16], quaternion: NDArray[np.float64]) -> NDArray[np.float32]:
    """Unit normals in the camera's frame from codes in the world's."""
    world = unit_normals(codes * (2 / _LARGEST_CODE) - 1)
    # A row times the rotation from camera to world is the column turned the other way.
    return world @ (_rotation(quaternion) * [1, -1, -1]).astype(np.float32)


def _rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix (3, 3) of a unit quaternion, w first."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
