"""Windows of JPEGs, from their bytes to their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled, kernel
from fastssl.jpeg.colours import enlarge, to_rgb
from fastssl.jpeg.frame import Frame, frame_of
from fastssl.jpeg.layout import BLOCK, LANES
from fastssl.jpeg.memory import byte_at
from fastssl.jpeg.scan import read_units
from fastssl.jpeg.transform import is_in_range, transform

_Bytes = NDArray[np.uint8]


def decode_windows(
    streams: Sequence[_Bytes], size: tuple[int, int], corners: NDArray[np.int64], out: _Bytes
) -> list[int]:
    """Decode a window of each JPEG, and read its whole scan.

    Args:
        streams: JPEGs; those are decoded that are of this size, whose header is that of the first, and whose scan is
            sound to the last bit.
        size: height and width.
        corners: (N, 2) first row and column of each window, which lies within the image.
        out: (N, h, w, 3) RGB to be filled.

    Returns:
        Numbers of those that are not decoded, whose pixels may be anything.
    """
    frame = frame_of(streams[0]) if streams else None
    if frame is None or (frame.height, frame.width) != size:
        return list(range(len(streams)))
    return np.flatnonzero(~_decode(*_spans(streams), frame, corners, out)).tolist()


def begin_and_end_alike(streams: Sequence[_Bytes], size: tuple[int, int]) -> list[bool]:
    """Whether each JPEG has the header of the first, which is a sound one of this size, and the end of a JPEG."""
    frame = frame_of(streams[0]) if streams else None
    if frame is None or (frame.height, frame.width) != size:
        return [False] * len(streams)
    found: list[bool] = _are_whole(*_spans(streams), frame).tolist()
    return found


def _spans(streams: Sequence[_Bytes]) -> tuple[NDArray[np.uintp], NDArray[np.uintp]]:
    """Addresses of the streams and of their last two bytes, (N,) each."""
    addresses = np.array([stream.ctypes.data for stream in streams], np.uintp)
    # Of what is shorter than its last two bytes, it lies before the address, and so before the scan.
    return addresses, addresses + (np.array([len(stream) for stream in streams]) - 2).astype(np.uintp)


def decode_image(stream: bytes) -> _Bytes | None:
    """The pixels of a JPEG, (H, W, 3) RGB; None if it is not decoded here, by the rules of `decode_windows`."""
    frame, content = frame_of(stream), np.frombuffer(stream, np.uint8)
    # Each unit takes more than a byte, so a short stream is damaged, and gets no memory for the pixels that it claims.
    if frame is None or len(stream) < -(-frame.height // 16) * len(frame.places):
        return None
    address, corner = np.array([content.ctypes.data], np.uintp), np.zeros((1, 2), np.int64)
    out = np.empty((1, frame.height, frame.width, 3), np.uint8)
    return out[0] if _decode(address, address + np.uintp(len(content) - 2), frame, corner, out)[0] else None


class _Planes(NamedTuple):
    """Memory for what becomes of an image."""

    coefficients: NDArray[np.int16]
    """Coefficients of a row of units, as `Frame.places` tells."""
    between: NDArray[np.int32]
    """Memory of `transform`."""
    brightness: NDArray[np.uint64]
    """(H, W / 8), rounded up to whole units and groups of blocks; eight pixels each."""
    colours: NDArray[np.uint64]
    """(2, H / 2, W / 16), as before: blue and red."""
    sums: NDArray[np.int16]
    enlarged: _Bytes
    """Memory of `_fill_window`, as are `sums`."""


@compiled
def _decode(
    addresses: NDArray[np.uintp], ends: NDArray[np.uintp], frame: Frame, corners: NDArray[np.int64], out: _Bytes
) -> NDArray[np.bool_]:
    """Decode windows; whether each stream is sound.

    Args:
        addresses: (N,) of the streams.
        ends: (N,) addresses of their last two bytes.
        frame: of a stream with the same header.
        corners, out: as of `decode_windows`.
    """
    rows, columns = -(-frame.height // 16), len(frame.places)
    groups, colour_groups = -(-2 * columns // LANES), -(-columns // LANES)
    half_height, half_width = -(-frame.height // 2), -(-frame.width // 2)
    planes = _Planes(
        np.empty(2 * (groups + colour_groups) * BLOCK, np.int16),
        np.empty(65 * LANES, np.int32),
        np.empty((16 * rows, groups * LANES), np.uint64),
        np.empty((2, 8 * rows, colour_groups * LANES), np.uint64),
        np.empty(half_width + 2, np.int16),
        np.empty((2, 2 * half_width), np.uint8),
    )
    brightness = planes.brightness.view(np.uint8)
    colours = planes.colours.view(np.uint8)[:, :half_height, :half_width]
    predictions = np.empty(3, np.int64)
    is_sound = np.empty(len(addresses), np.bool_)
    for i in range(len(addresses)):
        is_sound[i] = _fill_planes(addresses[i], ends[i], frame, predictions, planes)
        if is_sound[i]:
            _fill_window(brightness, colours, (corners[i, 0], corners[i, 1]), planes.sums, planes.enlarged, out[i])
    return is_sound


@compiled
def _are_whole(addresses: NDArray[np.uintp], ends: NDArray[np.uintp], frame: Frame) -> NDArray[np.bool_]:
    found = np.empty(len(addresses), np.bool_)
    for i in range(len(addresses)):
        found[i] = _is_whole(addresses[i], ends[i], frame)
    return found


@kernel
def _is_whole(address: np.uintp, end: np.uintp, frame: Frame) -> bool:
    """A stream begins with the frame's header, and its last two bytes are a JPEG's end."""
    is_long = end >= address + np.uintp(len(frame.header))
    return bool(is_long and byte_at(end) == 0xFF and byte_at(end + np.uintp(1)) == 0xD9) and _begins_with(
        address, frame
    )


@kernel
def _fill_planes(
    address: np.uintp, end: np.uintp, frame: Frame, predictions: NDArray[np.int64], planes: _Planes
) -> bool:
    """Decode a stream but for its colours; whether it is sound."""
    start = address + np.uintp(len(frame.header))
    if not _is_whole(address, end, frame):
        return False
    groups, colour_groups = planes.brightness.shape[1] // LANES, planes.colours.shape[2] // LANES
    place = start, np.uint64(0), np.uint64(0), np.uint64(0)
    predictions[:], planes.between[:] = 0, 0
    for unit in range(planes.brightness.shape[0] // 16):
        planes.coefficients[:] = 0
        place, is_sound = read_units(place, end, frame, predictions, planes.coefficients)
        if not is_sound:
            return False
        for half in range(2):
            _fill_row(planes, groups, half * groups, frame.factors[0], planes.brightness, 16 * unit + 8 * half)
            first = 2 * groups + half * colour_groups
            _fill_row(planes, colour_groups, first, frame.factors[1], planes.colours[half], 8 * unit)
    at, _, count, missing = place
    # What is left is less than a byte, which the encoder filled up, and then the end.
    is_at_end = missing <= count < missing + np.uint64(8) and at == end
    return bool(is_at_end and is_in_range(planes.between))


@kernel
def _fill_row(
    planes: _Planes, groups: int, first: int, factors: NDArray[np.int32], plane: NDArray[np.uint64], row: int
) -> None:
    """Transform a row of blocks, groups of them from the first one on."""
    for group in range(groups):
        start = (first + group) * BLOCK
        transform(planes.coefficients, start, factors, planes.between, plane, row, group * LANES)


@kernel
def _begins_with(address: np.uintp, frame: Frame) -> bool:
    """A stream, which is as long as that at least, begins with the frame's header."""
    differing = np.uint8(0)
    for k in range(np.uintp(len(frame.header))):
        differing |= byte_at(address + k) ^ frame.header[k]
    return bool(differing == 0)


@kernel
def _fill_window(
    brightness: _Bytes,
    colours: _Bytes,
    corner: tuple[int, int],
    sums: NDArray[np.int16],
    enlarged: _Bytes,
    out: _Bytes,
) -> None:
    """Put a window together.

    Args:
        brightness: (H, W) or more columns.
        colours: (2, H / 2, W / 2) rounded up, blue and red.
        corner: first row and column.
        sums, enlarged: (W / 2 + 2,) and (2, 2 * W / 2) memory to work in.
        out: (h, w, 3) to be filled.
    """
    top, left = corner
    height, width = out.shape[:2]
    for y in range(top, top + height):
        near = y // 2
        far = min(max(near + (1 if y % 2 else -1), 0), colours.shape[1] - 1)
        for colour in range(2):
            enlarge(colours[colour], near, far, sums, enlarged[colour])
        blue, red = enlarged[0, left : left + width], enlarged[1, left : left + width]
        to_rgb(brightness[y, left : left + width], blue, red, out[y - top].reshape(-1))
