"""One record as the members of a packed sample: stretched, encoded, and proven to decode again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Record
from fastssl.errors import DataError, ShardError
from fastssl.geometry import resized_camera
from fastssl.shards.codec import StoredTargets, compressed, inflated, target_block, target_layout
from fastssl.shards.image_codec import decoded_as_loaded
from fastssl.shards.manifest import CLASS_INDEX, TARGET_MEMBERS, Settings
from fastssl.shards.resample import nearest_edge, nearest_targets, stretched
from fastssl.shards.statistics import (
    Camera,
    CameraRange,
    PlaneValues,
    Statistics,
    depth_values,
    image_values,
    mask_values,
    member_bytes,
    normal_values,
)

_MOST_CLASSES = 10**9
"""Far more classes than there are, and few enough for any reader's integers."""

Members = list[tuple[str, bytes]]
"""Extension and content of each file of a sample, in their order in the archive."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder of records of any size as squares of one size.

    The whole image is stretched to the square (Lanczos; targets by the nearest pixel, contours are taken from
    the stretched instance map), and the camera with it. Normals stay as they are: they belong to the camera's frame,
    which a stretched image shares.
    """

    settings: Settings
    labelled: bool

    def members(self, record: Record, reference: str) -> tuple[Members, Statistics]:
        """The files of a sample, and what the manifest says about it.

        Raises:
            DataError: the record lacks a plane, has one of a wrong shape, or what was packed does not decode; names
                the reference.
        """
        _check(record, reference, labelled=self.labelled)
        size = self.settings.size
        stored, image = _proven_image(record.image, self.settings, reference)
        content: Members = [(self.settings.images.member, stored)]
        planes, camera = {"image": image_values(image)}, None
        if self.labelled:
            block, values = _proven_targets(record, self.settings, reference)
            content.append((TARGET_MEMBERS[self.settings.target_codec], block))
            planes |= values
            camera = _camera(record, size)
        if record.class_index is not None:
            content.append((CLASS_INDEX, str(int(record.class_index)).encode("ascii")))
        return content, Statistics(
            member_bytes={name: member_bytes(member) for name, member in content},
            planes=planes,
            camera=camera,
            classes=0 if record.class_index is None else int(record.class_index) + 1,
        )


def _check(record: Record, reference: str, *, labelled: bool) -> None:
    image = record.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError("an image is not RGB of 8 bits", where=reference, seen=f"{image.dtype} of shape {image.shape}")
    if record.class_index is not None and not 0 <= record.class_index < _MOST_CLASSES:
        allowed = f"from 0 to below {_MOST_CLASSES}"
        raise DataError("a class number is out of range", where=reference, seen=record.class_index, expected=allowed)
    if not labelled:
        return
    area = image.shape[:2]
    marks = "instance" if record.edge is None else "edge"
    for name, expected in {"depth": area, "normal": (*area, 3), marks: area}.items():
        plane: NDArray[Any] | None = getattr(record, name)
        if plane is None or plane.shape != expected:
            seen = "none" if plane is None else f"shape {plane.shape}"
            raise DataError(f"a labelled sample has no usable {name}", where=reference, seen=seen, expected=expected)
    if record.camera is None:
        raise DataError("a labelled sample has no camera", where=reference)


def _proven_image(image: NDArray[np.uint8], settings: Settings, reference: str) -> tuple[bytes, NDArray[np.uint8]]:
    """The member with the image, and its pixels as they come out of it again."""
    codec, square = settings.images, np.ascontiguousarray(stretched(image, settings.size))
    member = codec.encode(square)
    try:
        pixels = decoded_as_loaded(codec, member, (settings.size, settings.size))
    except ShardError as error:
        raise DataError("an image was packed but cannot be decoded", where=reference, seen=error.seen) from error
    if codec.lossless and not np.array_equal(pixels, square):
        raise DataError("an image was packed but comes out changed", where=reference)
    return member, pixels


def _proven_targets(record: Record, settings: Settings, reference: str) -> tuple[bytes, dict[str, PlaneValues]]:
    """The member with the targets, and the values of its planes."""
    assert record.depth is not None
    assert record.normal is not None
    size = settings.size
    if record.instance is not None:
        edge = nearest_edge(record.instance, size)
    else:
        assert record.edge is not None
        edge = _any_in_cells(record.edge, size)
    try:
        millimetres, normal = nearest_targets(record.depth, record.normal, size)
    except ValueError as error:
        raise DataError("a labelled sample has no usable normal", where=reference, seen=str(error)) from error
    planes = StoredTargets(millimetres=millimetres, normal=normal, edge=edge)
    block = target_block(planes, settings.target_codec)
    member = compressed(block, settings.target_codec, settings.lz4_level)
    _prove_targets(member, block, settings, reference)
    return member, {
        "depth": depth_values(planes.millimetres),
        "normal": normal_values(normal),
        "edge": mask_values(planes.edge),
    }


def _prove_targets(member: bytes, block: NDArray[np.uint8], settings: Settings, reference: str) -> None:
    try:
        content = inflated(member, target_layout(settings.size, settings.size), settings.target_codec)
    except ShardError as error:
        raise DataError("targets were packed but cannot be decoded", where=reference, seen=error.seen) from error
    if not np.array_equal(content, block):
        raise DataError("targets were packed but come out changed", where=reference)


def _any_in_cells(edge: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Stored contours at the packed size: a pixel is one if any stored pixel in it is, so that none is lost."""
    rows, columns = (np.arange(size) * side // size for side in edge.shape)
    cells: NDArray[np.bool_] = np.logical_or.reduceat(np.logical_or.reduceat(edge, rows, axis=0), columns, axis=1)
    return cells


def _camera(record: Record, size: int) -> CameraRange:
    assert record.camera is not None
    height, width = record.image.shape[:2]
    camera = resized_camera(record.camera, size / width, size / height)
    packed = Camera(fx=float(camera.fx), fy=float(camera.fy), cx=float(camera.cx), cy=float(camera.cy))
    return CameraRange(min=packed, max=packed)
