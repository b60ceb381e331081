"""Layout `movi`: Kubric's MOVi-A to MOVi-F as TensorFlow Datasets stores them, read without TensorFlow.

    movi_e-train.tfrecord-00000-of-01024        one record per video: a `tf.train.Example`
    movi_e-validation.tfrecord-00000-of-NNNNN
    features.json, dataset_info.json            not needed

The file has three parts: the source, the reader of `tf.train.Example`, and that of TFRecord files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.geometry import depth_from_ray_length, pixel_rays
from fastssl.shards import Domain
from fastssl.sources.keys import key_of
from fastssl.sources.subsets import checked_subset

_FILE = re.compile(r"[a-z_]*movi_[a-f]-(?P<split>[a-z]+)\.tfrecord-[0-9]{5}-of-[0-9]{5}")
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
    """Of each name in `_PLANES`, F."""
    depth_range: tuple[float, float]
    """Metres, of the codes 0 and 65535."""
    focal_length: float
    """In widths of the image."""
    quaternions: NDArray[np.float64]
    """(F, 4) rotations from the camera's to the world's frame, w first."""

    def __len__(self) -> int:
        return len(self.planes["video"])


class MoviSource:
    """The frames of one variant and size, from the folder of its version, such as `movi_e/256x256/1.0.0`.

    Facts of the format, from google-research/kubric (`challenges/movi/movi_*.py`, `kubric/core/cameras.py`,
    `kubric/core/objects.py`, `kubric/renderer/blender_utils.py`) and tensorflow/datasets (its features `Image` and
    `Video`, `example_serializer.py`):

    - `video`: F encoded images, 8-bit RGB.
    - `depth`: F PNG, 16-bit gray. Codes 0 to 65535 span `metadata/depth_range`, in metres, which is that of the whole
      video. It is the distance from the camera's centre, computed for pixel centres at index + 0.5, and becomes planar
      z. Kubric's renderer itself writes float32 TIFF in metres; frames stored so are told by their mode and taken too.
    - `normal`: F PNG, 16-bit RGB, floor(65535 (n + 1) / 2) in the world's frame. It is turned into the camera's by
      `camera/quaternions` (w, x, y, z; from camera to world) and from Blender's camera (x right, y up, looking along
      -z) into ours.
    - `segmentations`: F PNG, 8-bit gray; 0 is the background, which is an identity like any other here.
    - `camera/focal_length` and `camera/sensor_width` in millimetres: pixels are square, the axis meets the image's
      middle.

    Not known: depth of points more than 65.535 m away; all depth of a video that shows Blender's background, whose
    distance of 1e10 leaves everything else within one step of the codes; normals where nothing was hit (all codes
    32767) and those that face away from the camera, as a shading normal at a silhouette can.

    The smaller sizes hold every second (or fourth) pixel of larger label planes beside averages of the image, so their
    labels lie up to a quarter of a pixel beside its pixels' centres. That is left as it is: it costs about 0.1 % of
    the depth at most.

    Every video of a dataset has the same number of frames, by TFDS's description of its features. Frames are referred
    to as `FILE/RECORD/FRAME`. Files that are missing from a partial download are not missed.

    Args:
        subset: a split, `train`, `validation` or `test` (C, D and E have the last); None takes all that are there.

    Raises:
        DataError: the folder does not hold such files.
        UsageError: it holds none of this split.
    """

    layout: str = "movi"
    domain: Domain = "synthetic"
    labelled: bool = True
    licence: str = "not stated with the data (Kubric: Apache-2.0, Google Scanned Objects: CC-BY-4.0); check the terms"

    @classmethod
    def recognise(cls, path: Path) -> bool:
        """The folder holds MOVi's TFRecord files."""
        try:
            with os.scandir(path) as entries:
                return any(_FILE.fullmatch(entry.name) for entry in islice(entries, 1000))
        except OSError:
            return False

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None) -> None:
        self.path = Path(path)
        splits = {split for split, _ in self._files()}
        if not splits:
            raise DataError(
                "the folder holds no TFRecord files of MOVi",
                where=self.path,
                expected="files such as movi_e-train.tfrecord-00000-of-01024",
                do="give the folder of one version, such as movi_e/256x256/1.0.0",
            )
        self.subset = checked_subset(self.layout, subset, sorted(splits))
        self._last: tuple[str, int, _Video] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The video read last, tens of megabytes, stays behind.
        return {**self.__dict__, "_last": None}

    def references(self) -> Iterator[str]:
        """File by file, video by video, frame by frame.

        Raises:
            DataError: a file is cut short, or the length of a record is damaged; it names file and record.
        """
        frames = 0
        for split, name in self._files():
            if self.subset not in (None, split):
                continue
            for record, _ in enumerate(_extents(self.path / name)):
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
        where = f"{self.path / parts['file']}: record {record}"
        if frame >= len(video):
            raise DataError("a record has no such frame", where=where, seen=frame, expected=f"0 to {len(video) - 1}")
        return _frame(video, frame, where, self.key(reference))

    def _files(self) -> list[tuple[str, str]]:
        """Split and name of each file, sorted."""
        try:
            names = [path.name for path in self.path.iterdir()]
        except OSError as error:
            raise DataError("the folder cannot be listed", where=self.path, seen=error.strerror) from error
        return sorted((match["split"], name) for name in names if (match := _FILE.fullmatch(name)))

    def _video(self, name: str, record: int) -> _Video:
        # Frames are read in a row, and checking and parsing a record costs as much as decoding some of them.
        if self._last is None or self._last[:2] != (name, record):
            path = self.path / name
            video = _video(_record(path, record), f"{path}: record {record}")
            self._last = (name, record, video)
        return self._last[2]


def _video(example: bytes, where: str) -> _Video:
    features = _features(example, {*_PLANES, *_NUMBERS}, where)
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
    image = _pixels(video.planes["video"][frame], ("RGB",), places["video"])
    height, width, _ = image.shape
    depth, normal, instance = (
        _pixels(video.planes[name][frame], modes, places[name], (height, width))
        for name, modes in (("depth", ("I;16", "F")), ("normal", ("RGB;16B",)), ("segmentations", ("L",)))
    )
    focal = video.focal_length * width
    camera = Intrinsics(fx=focal, fy=focal, cx=width / 2, cy=height / 2)
    return Record(
        key=key,
        image=image,
        depth=depth_from_ray_length(_distance(depth, video.depth_range), camera),
        normal=_facing(normal, video.quaternions[frame], pixel_rays(camera, height, width)),
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


def _facing(
    codes: NDArray[np.uint16], quaternion: NDArray[np.float64], rays: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Normals in the camera's frame from codes in the world's."""
    world = codes * (2 / _LARGEST_CODE) - 1
    length = np.linalg.norm(world, axis=2, keepdims=True)
    # A row times the rotation from camera to world is the column turned the other way.
    normal = world @ _rotation(quaternion) * [1, -1, -1]
    # Half: the codes of a unit vector lose next to nothing, those of no vector have a length of 1e-5.
    known = (length > 0.5) & ((normal * rays).sum(axis=2, keepdims=True) < 0)
    return np.where(known, normal / np.maximum(length, 0.5), 0).astype(np.float32)


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


def _pixels(data: bytes, modes: tuple[str, ...], where: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
    """Decode an image as it was stored; `RGB;16B` is colour of 16 bits, the other modes are Pillow's."""
    try:
        with Image.open(BytesIO(data)) as image:
            mode = image.tile[0].args if image.tile[0].args == "RGB;16B" else image.mode
            pixels = _colour_of_16_bits(data) if mode == "RGB;16B" else np.array(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for damaged bytes.
        raise DataError("an image does not decode", where=where, seen=str(error) or type(error).__name__) from error
    height, width = size or pixels.shape[:2]
    if mode not in modes or pixels.shape[:2] != (height, width):
        seen = f"{pixels.shape[1]} x {pixels.shape[0]} of mode {mode}"
        expected = f"{width} x {height} of mode {' or '.join(modes)}"
        raise DataError("an image is not what MOVi has here", where=where, seen=seen, expected=expected)
    return pixels


def _colour_of_16_bits(data: bytes) -> NDArray[np.uint16]:
    """Decode a PNG of 16-bit RGB, of which Pillow gives the high bytes alone: once for them, once for the low ones."""
    halves: list[NDArray[np.uint16]] = []
    for byte in ("RGB;16B", "RGB;16L"):  # the first byte of each pair, and the second
        with Image.open(BytesIO(data)) as image:
            image.tile = [tile._replace(args=byte) for tile in image.tile]
            halves.append(np.array(image, dtype=np.uint16))
    high, low = halves
    return high << np.uint16(8) | low


# --- tf.train.Example: protocol buffers, of which a dozen lines read what is needed and skip the rest unparsed. TFDS
# stores optical flow as lists of numbers, most of a record, which any other reader would take apart.


def _features(example: bytes, names: Collection[str], where: str) -> dict[str, list[memoryview]]:
    """The values of the named features: each image's bytes, or float32 in chunks.

    Example { Features features = 1; }, Features { map<string, Feature> feature = 1; },
    Feature { oneof { BytesList = 1; FloatList = 2; Int64List = 3; } }, each list { repeated value = 1; }.
    """
    found = {}
    try:
        for features in _messages(memoryview(example), 1):
            for entry in _messages(features, 1):
                name = b"".join(_messages(entry, 1)).decode()
                if name in names:
                    found[name] = [value for feature in _messages(entry, 2) for value in _values(feature)]
    except (ValueError, IndexError) as error:
        raise DataError("a record is not a tf.train.Example", where=where, seen=str(error)) from error
    return found


def _values(feature: memoryview) -> Iterator[memoryview]:
    for kind in (1, 2):
        for values in _messages(feature, kind):
            yield from _messages(values, 1)


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The fields of a message that have this number, as bytes; varints are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            _, position = _varint(message, position)
            continue
        if tag & 7 == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(tag & 7, len(message))
        if position + size > len(message):
            raise ValueError(f"a field of type {tag & 7} and {size} bytes reaches beyond its message")
        if tag >> 3 == number:
            yield message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, least first, and the position after it."""
    value = shift = 0
    while message[position] & 0x80:
        value |= (message[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | message[position] << shift, position + 1


# --- TFRecord: each record is its length (uint64, little-endian), the masked CRC-32C of that, the data, and theirs.

_HEADER, _CHECKSUM = 12, 4


def _extents(path: Path) -> Iterator[tuple[int, int]]:
    """Where the data of each record begin and how long they are, from length to length, their bytes untouched."""
    try:
        with path.open("rb") as file:
            end, position, record = os.fstat(file.fileno()).st_size, 0, 0
            while position < end:
                file.seek(position)
                header = file.read(_HEADER)
                where = f"{path}: record {record}"
                if len(header) == _HEADER:
                    _check(header[:8], header[8:], "length", where)
                length = int.from_bytes(header[:8], "little")
                following = position + _HEADER + length + _CHECKSUM
                if len(header) < _HEADER or following > end:
                    seen = f"{end - position} bytes to the end of the file"
                    raise DataError("a record is cut short", where=where, seen=seen, do="fetch the file again")
                yield position + _HEADER, length
                position, record = following, record + 1
    except OSError as error:
        raise DataError("a TFRecord file cannot be read", where=path, seen=error.strerror) from error


def _record(path: Path, number: int) -> bytes:
    extent = next(islice(_extents(path), number, None), None)
    where = f"{path}: record {number}"
    if extent is None:
        raise DataError("there is no such record", where=where)
    start, length = extent
    with path.open("rb") as file:
        file.seek(start)
        data, checksum = file.read(length), file.read(_CHECKSUM)
    _check(data, checksum, "data", where)
    return data


def _check(data: bytes, checksum: bytes, what: str, where: str) -> None:
    crc = crc32c(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    stored = int.from_bytes(checksum, "little")
    if masked != stored:
        raise DataError(
            f"the {what} of a record is damaged",
            where=where,
            seen=f"masked CRC-32C {masked:08x}",
            expected=f"{stored:08x}",
            do="fetch the file again",
        )


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720) at the speed of NumPy.

    A remainder is linear in its bits over GF(2), and zeros in front of the data do not change it. So the data are cut
    into stretches whose remainders advance together, four bytes at a time, and are then joined two by two: the
    first of a pair moves on by the length of the second.
    """
    stretches = 1 << max(0, len(data).bit_length() - 12)
    words = -(-len(data) // (4 * stretches))
    padded = bytes(4 * words * stretches - len(data)) + data
    low, high = _word_tables()
    state = np.zeros(stretches, np.uint32)
    for column in np.ascontiguousarray(np.frombuffer(padded, "<u4").reshape(stretches, words).T):
        state ^= column
        state = low[state & 0xFFFF] ^ high[state >> 16]
    move = _power(_BIT, 32 * words)
    while len(state) > 1:
        state = _moved(move, state[0::2]) ^ state[1::2]
        move = _moved(move, move)
    ones = np.array([0xFFFFFFFF], np.uint32)
    return int((state ^ _moved(_power(_BIT, 8 * len(data)), ones) ^ ones)[0])


# A linear map of 32 bits is the array of its values at 1, 2, 4, ...; this one moves a remainder on by one bit.
_BIT = np.array([0x82F63B78] + [1 << bit for bit in range(31)], np.uint32)


def _moved(move: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    bits = states[:, None] >> np.arange(32, dtype=np.uint32) & 1
    moved: NDArray[np.uint32] = np.bitwise_xor.reduce(bits * move, axis=1)
    return moved


def _power(move: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """The map applied `count` times."""
    result = np.array([1 << bit for bit in range(32)], np.uint32)
    while count:
        if count & 1:
            result = _moved(move, result)
        move, count = _moved(move, move), count >> 1
    return result


@cache
def _word_tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What four bytes of zeros make of each lower and each upper half of a remainder."""
    numbers = np.arange(1 << 16, dtype=np.uint32)
    move = _power(_BIT, 32)
    return _moved(move, numbers), _moved(move, numbers << np.uint32(16))
