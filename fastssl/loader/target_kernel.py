"""From packed target blocks to the planes of a batch in one pass, compiled, on the CPU.

A sample's block is inflated into a buffer that stays in the cache. Each of its rows is made of the one above, down to
the last that is seen, and taken apart into a row of bytes for each number; the bytes that are seen are gathered for a
few rows of the output, and those rows are computed at once.

What makes it fast: the compiler turns a loop into vector instructions only if it is short and touches few arrays, so
every step is a function over many pixels. What is left over behind the last whole vector takes as long as several of
them, so loops over single rows run on into margins. And a slice of an array costs as much as a vector or two, so these
loops get whole arrays and places in them.

What a block holds is written at `fastssl.shards.codec`, what comes out at `fastssl.batch.Batch`, and which
pixels are seen at `fastssl.loader.plan.Views`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled, inlined
from fastssl.loader.past_cache import copy_past, finish_stores
from fastssl.native import lz4_decompress, memcpy

_Bytes = NDArray[np.uint8]
_Words = NDArray[np.uint32]
_Floats = NDArray[np.float32]
_Mask = NDArray[np.bool_]
_Places = NDArray[np.int64]


class Block(NamedTuple):
    """The layout that all blocks of a dataset have."""

    height: int
    width: int
    normal: int
    """First byte of the normals."""
    edge: int
    """First byte of the contours."""
    num_bytes: int
    compressed: bool
    """Blocks are LZ4, and their rows differences; otherwise they are the bytes as they are."""


class Members(NamedTuple):
    """The packed blocks of N samples, somewhere in memory."""

    address: NDArray[np.uintp]
    size: NDArray[np.int32]


class Seen(NamedTuple):
    """The windows of N samples; the arrays of `Views`."""

    rows: _Places
    columns: _Places
    """(N, S) stored rows and columns nearest to the output's, the columns from right to left where it is flipped."""
    cell_rows: _Places
    cell_columns: _Places
    """(N, S) first row and column of each cell, without the flip."""
    ends: _Places
    """(N, 2) row and column behind the window."""
    flip: _Mask


class Filters(NamedTuple):
    """Filters for windows that are not as large as the output."""

    linear_normals: bool
    """Blend the four normals around a pixel's centre, of those that are known, and make the result unit again."""
    edge_area: bool
    """A pixel has the fraction of contours in its cell, and not 1 where there is any."""


class Between(NamedTuple):
    """Stored pixels around the output's, for blended normals; `Views.neighbours`, or arrays without columns."""

    above: _Places
    below: _Places
    down: _Floats
    """(N, S) rows above and below each pixel's centre, and the fraction of the way down at which it lies."""
    before: _Places
    behind: _Places
    along: _Floats
    """(N, S) the same of the columns."""


class Targets(NamedTuple):
    """Planes of a `Batch`, by the names that they have there."""

    depth: _Floats
    normal: _Floats
    edge: _Floats
    valid: _Mask
    stored_edge_fraction: _Floats


CANCELLED = np.float32(1e-3 * 255)
"""Opposite normals leave nothing to be made unit; the nearest one stays."""
_AT_ONCE = 8
"""Rows of the output that are computed at once; their bytes and what is made of them stay in the nearest cache."""
_MARGIN = 64
"""Bytes of the longest vector."""
_NUM_BITS = np.array([number.bit_count() for number in range(256)], np.uint8)
# Eight pixels of a byte of contours, as eight bytes of 0 or 1.
_PIXELS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.uint64)[:, 0].copy()


def fill_targets(
    first: int,
    step: int,
    block: Block,
    members: Members,
    seen: Seen,
    between: Between,
    filters: Filters,
    targets: Targets,
) -> NDArray[np.int32]:
    """Make the targets of the samples first, first + step and so on of a batch.

    Returns:
        The bytes that each of these blocks held, (...,): other than ``block.num_bytes`` if it is damaged, negative if
        it is no LZ4 block. The targets of such a sample are not written.
    """
    sizes: NDArray[np.int32] = np.empty(len(range(first, len(members.size), step)), np.int32)
    _fill_targets(lz4_decompress(), memcpy(), first, step, block, members, seen, between, filters, targets, sizes)
    return sizes


@compiled
def _fill_targets(
    inflate: Any,
    copy: Any,
    first: int,
    step: int,
    block: Block,
    members: Members,
    seen: Seen,
    between: Between,
    filters: Filters,
    targets: Targets,
    sizes: NDArray[np.int32],
) -> None:
    raw = np.empty(block.num_bytes, np.uint8)
    depth = raw[: block.normal].reshape(2, block.height, block.width)
    normal = raw[block.normal : block.edge].reshape(block.height, 3 * block.width)
    edge = raw[block.edge :].reshape(block.height, -(-block.width // 8))
    for number in range(len(sizes)):
        i = first + number * step
        sizes[number] = members.size[i]
        if block.compressed:
            sizes[number] = inflate(members.address[i], raw.ctypes.data, members.size[i], len(raw))
        elif members.size[i] == len(raw):
            copy(raw.ctypes.data, members.address[i], len(raw))
        if sizes[number] == len(raw):
            place = (seen.rows[i], seen.columns[i], seen.flip[i])
            surface = (targets.depth[i, 0], targets.normal[i], targets.valid[i, 0])
            if filters.linear_normals:
                lines = (between.above[i], between.below[i], between.before[i], between.behind[i])
                if block.compressed:
                    _undo(depth, normal, lines)
                _fill_surface(depth, normal, False, place, surface)
                _blend(normal, lines, (between.down[i], between.along[i], seen.flip[i]), surface[1])
            else:
                _fill_surface(depth, normal, block.compressed, place, surface)
            cells = (seen.cell_rows[i], seen.cell_columns[i], seen.ends[i], seen.flip[i])
            if filters.edge_area:
                _fill_edge_area(edge, cells, targets.edge[i, 0])
            else:
                _fill_edge(edge, cells, targets.edge[i, 0])
            targets.stored_edge_fraction[i] = _count(edge) / (block.height * block.width)
    finish_stores()


@compiled
def _fill_surface(
    depth: _Bytes,
    normal: _Bytes,
    differ: bool,
    place: tuple[_Places, _Places, bool],
    surface: tuple[_Floats, _Floats, _Mask],
) -> None:
    """Depth, normals and valid pixels of one sample.

    Args:
        depth: (2, H, W) stored bytes.
        normal: (H, 3 W) stored codes.
        differ: rows are differences.
        place: one sample of `Seen`: rows, columns, flip.
        surface: depth (S, S), normal (3, S, S) and valid (S, S) to be filled.
    """
    rows, columns, flip = place
    metres, units, valid = surface[0].reshape(-1), surface[1].reshape((3, -1)), surface[2].reshape(-1)
    size, width = len(rows), depth.shape[2]
    # Low and high byte of the depth and the three codes of the normal: of one stored row, and of rows that are seen.
    stored, codes = _row_of_bytes(5, width), _row_of_bytes(1, 3 * width)[0]
    low, high = depth[0], depth[1]
    stored_low, stored_high, first_code, second_code, third_code = stored
    seen, scale, made = _seen_bytes(5, size), _seen_floats(size), _seen_floats(size)
    y = 0
    for first in range(0, size, _AT_ONCE):
        last = min(first + _AT_ONCE, size)
        for i in range(first, last):
            y = y if differ else rows[i]
            while y <= rows[i]:
                _next_row(low, y, differ, stored_low)
                _next_row(high, y, differ, stored_high)
                _next_row(normal, y, differ, codes)
                y += 1
            _take_apart(codes, first_code, second_code, third_code)
            _see(stored, columns, seen, (i - first) * size)
        start, stop = first * size, last * size
        _to_metres(seen, made)
        copy_past(made, metres, start, stop)
        _to_scale(seen, scale)
        for axis in range(3):
            _to_units(seen, axis, scale, flip and axis == 0, made)
            copy_past(made, units[axis], start, stop)
        _to_valid(seen, valid[start:stop])


@compiled
def _row_of_bytes(num: int, width: int) -> _Bytes:
    """(num, W) bytes of 0 between two margins."""
    return np.zeros((num, width + 2 * _MARGIN), np.uint8)


@compiled
def _seen_bytes(num: int, size: int) -> _Bytes:
    """(num, rows * S) bytes and a margin behind them."""
    return np.zeros((num, _AT_ONCE * size + _MARGIN), np.uint8)


@compiled
def _seen_floats(size: int) -> _Floats:
    """(rows * S,) numbers, not filled yet."""
    return np.empty(_AT_ONCE * size, np.float32)


@inlined
def _next_row(stored: _Bytes, y: int, differ: bool, values: _Bytes) -> None:
    """The values of a stored row, from those of the row above if rows are differences."""
    row, margin = np.uintp(y), np.uintp(_MARGIN)
    if differ:
        for x in range(np.uintp(stored.shape[1])):
            values[margin + x] += stored[row, x]
    else:
        for x in range(np.uintp(stored.shape[1])):
            values[margin + x] = stored[row, x]


@inlined
def _take_apart(codes: _Bytes, first: _Bytes, second: _Bytes, third: _Bytes) -> None:
    """The three codes of each pixel, which lie side by side, as three rows."""
    for j in range(np.uintp(len(first) - 2 * _MARGIN)):
        x, place = np.uintp(_MARGIN) + j, np.uintp(_MARGIN) + np.uintp(3) * j
        first[x], second[x], third[x] = codes[place], codes[place + np.uintp(1)], codes[place + np.uintp(2)]


@inlined
def _see(stored: _Bytes, columns: _Places, seen: _Bytes, start: int) -> None:
    """Of a stored row, the bytes at these columns; runs as they are and mirrored ones take a fifth of the time.

    Args:
        stored: (planes, W) between margins.
        columns: (S,) either way in order, with the nearest pixel of each, so that their ends tell a run.
        seen: (planes, rows * S) and a margin; what lies behind the S bytes from `start` on is overwritten.
    """
    size, out = len(columns), np.uintp(start)
    first = np.uintp(_MARGIN + columns[0])
    whole = np.uintp(-(-size // _MARGIN) * _MARGIN)
    if columns[-1] - columns[0] == size - 1:
        for k in range(np.uintp(len(stored))):
            for j in range(whole):
                seen[k, out + j] = stored[k, first + j]
    elif columns[0] - columns[-1] == size - 1:
        for k in range(np.uintp(len(stored))):
            for j in range(whole):
                seen[k, out + j] = stored[k, first - j]
    else:
        for k in range(np.uintp(len(stored))):
            for j in range(np.uintp(size)):
                seen[k, out + j] = stored[k, np.uintp(_MARGIN) + np.uintp(columns[j])]


@compiled
def _undo(depth: _Bytes, normal: _Bytes, lines: tuple[_Places, _Places, _Places, _Places]) -> None:
    """Values from differences, of all that is seen."""
    _, below, before, behind = lines
    left, right = before.min(), behind.max() + 1
    for y in range(1, below.max() + 1):
        _add(depth[0, y - 1][left:right], depth[0, y][left:right])
        _add(depth[1, y - 1][left:right], depth[1, y][left:right])
        _add(normal[y - 1][3 * left : 3 * right], normal[y][3 * left : 3 * right])


@compiled
def _blend(
    normal: _Bytes,
    lines: tuple[_Places, _Places, _Places, _Places],
    fractions: tuple[_Floats, _Floats, bool],
    units: _Floats,
) -> None:
    """Normals between stored pixels, in place of the nearest ones.

    Args:
        normal: (H, 3 W) stored codes.
        lines: one sample of `Between`: rows above and below, columns before and behind.
        fractions: of the rows below and of the columns behind; flip.
        units: (3, S, S) the nearest normals, zero where not known; these stay zero.
    """
    above, below, before, behind = lines
    down, along, flip = fractions
    first = np.empty(normal.shape[1] // 3, np.uint32)
    second = np.empty_like(first)
    for i in range(len(above)):
        _to_codes(normal[above[i]], first)
        _to_codes(normal[below[i]], second)
        for j in range(len(before)):
            if units[0, i, j] != 0 or units[1, i, j] != 0 or units[2, i, j] != 0:
                x, y, z = _weighted(
                    (first[before[j]], first[behind[j]], second[before[j]], second[behind[j]]), down[i], along[j]
                )
                length = np.sqrt(x * x + y * y + z * z)
                if length > CANCELLED:
                    units[0, i, j] = (-x if flip else x) / length
                    units[1, i, j] = y / length
                    units[2, i, j] = z / length


@inlined
def _weighted(
    codes: tuple[np.uint32, np.uint32, np.uint32, np.uint32], down: np.float32, along: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """255 times the sum of four normals (above left, above right, below left, below right) by their fractions."""
    x, y, z = np.float32(0), np.float32(0), np.float32(0)
    up, back = np.float32(1) - down, np.float32(1) - along
    fractions = (up * back, up * along, down * back, down * along)
    for k in range(4):
        if codes[k] != 0:
            x += fractions[k] * _coordinate(codes[k] & 255)
            y += fractions[k] * _coordinate(codes[k] >> 8 & 255)
            z += fractions[k] * _coordinate(codes[k] >> 16 & 255)
    return x, y, z


@inlined
def _add(above: _Bytes, row: _Bytes) -> None:
    for x in range(len(row)):
        row[x] += above[x]


@inlined
def _to_codes(normal: _Bytes, codes: _Words) -> None:
    """The three codes of a pixel side by side in one number."""
    for x in range(len(codes)):
        codes[x] = normal[3 * x] | normal[3 * x + 1] << 8 | normal[3 * x + 2] << 16


@inlined
def _coordinate(code: np.uint8 | np.uint32) -> np.float32:
    """255 times a coordinate of the normal: an odd whole number, so sums of squares are exact in whatever order."""
    return np.float32(2) * np.float32(code) - np.float32(255)


@inlined
def _to_metres(seen: _Bytes, metres: _Floats) -> None:
    low, high = seen[0], seen[1]
    for j in range(len(metres)):
        metres[j] = (np.float32(low[j]) + np.float32(256) * np.float32(high[j])) * np.float32(1e-3)


@inlined
def _to_scale(seen: _Bytes, scale: _Floats) -> None:
    """What makes the coordinates of each pixel a unit vector; 0 where the normal is not known."""
    first, second, third = seen[2], seen[3], seen[4]
    for j in range(len(scale)):
        x, y, z = _coordinate(first[j]), _coordinate(second[j]), _coordinate(third[j])
        length = np.sqrt(x * x + y * y + z * z)
        scale[j] = np.float32(1) / length if first[j] | second[j] | third[j] else np.float32(0)


@inlined
def _to_units(seen: _Bytes, axis: int, scale: _Floats, negative: bool, units: _Floats) -> None:
    codes, sign = seen[2 + axis], np.float32(-1 if negative else 1)
    for j in range(len(units)):
        units[j] = _coordinate(codes[j]) * scale[j] * sign


@inlined
def _to_valid(seen: _Bytes, valid: _Mask) -> None:
    low, high, first, second, third = seen[0], seen[1], seen[2], seen[3], seen[4]
    for j in range(len(valid)):
        valid[j] = ((low[j] | high[j]) != 0) & ((first[j] | second[j] | third[j]) != 0)


@compiled
def _fill_edge(bits: _Bytes, cells: tuple[_Places, _Places, _Places, bool], edge: _Floats) -> None:
    """Contours of one sample: a pixel is one if any stored pixel of its cell is.

    Args:
        bits: (H, ceil(W / 8)) stored contours.
        cells: one sample of `Seen`: first rows, first columns, ends, flip.
        edge: (S, S) to be filled.
    """
    rows, columns, ends, flip = cells
    size, marks = len(rows), edge.reshape(-1)
    stored, seen, made = _row_of_bytes(1, 8 * bits.shape[1]), _seen_bytes(1, size), _seen_floats(size)
    pixels = stored[0, _MARGIN:-_MARGIN].view(np.uint64)
    members = _cell_members(columns, ends[1], flip)
    nearest = members[0]
    for first in range(0, size, _AT_ONCE):
        last = min(first + _AT_ONCE, size)
        for i in range(first, last):
            stop = rows[i + 1] if i + 1 < size else ends[0]
            _unpack(bits, rows[i], pixels)
            for y in range(rows[i] + 1, stop):
                _unpack_more(bits, y, pixels)
            _see(stored, nearest, seen, (i - first) * size)
            for k in range(1, len(members)):
                _or_seen(stored, members[k], seen, (i - first) * size)
        _to_float(seen, made)
        copy_past(made, marks, first * size, last * size)


@compiled
def _fill_edge_area(bits: _Bytes, cells: tuple[_Places, _Places, _Places, bool], edge: _Floats) -> None:
    """The fraction of contours in each cell; arguments as of `_fill_edge`."""
    rows, columns, ends, flip = cells
    size = len(rows)
    above = np.empty(bits.shape[1] * 8 + 1, np.int32)
    for i in range(size):
        bottom = max(rows[i + 1] if i + 1 < size else ends[0], rows[i] + 1)
        # Contours of the cell's rows to the left of each column.
        above[columns[0]] = 0
        for x in range(columns[0], ends[1]):
            marked = 0
            for y in range(rows[i], bottom):
                marked += bits[y, x >> 3] >> (7 - (x & 7)) & 1
            above[x + 1] = above[x] + marked
        for j in range(size):
            right = max(columns[j + 1] if j + 1 < size else ends[1], columns[j] + 1)
            marked = above[right] - above[columns[j]]
            area = (bottom - rows[i]) * (right - columns[j])
            edge[i, size - 1 - j if flip else j] = np.float32(marked) / np.float32(area)


@compiled
def _cell_members(columns: _Places, end: int, flip: bool) -> _Places:
    """(largest cell, S) columns of each cell's pixels; small cells repeat their last.

    A cell without a pixel of its own (the window is enlarged) has the nearest one.
    """
    size = len(columns)
    stops = np.empty(size, np.int64)
    for j in range(size):
        stops[j] = max(columns[j + 1] if j + 1 < size else end, columns[j] + 1)
    members = np.empty(((stops - columns).max(), size), np.int64)
    for j in range(size):
        for k in range(len(members)):
            members[k, size - 1 - j if flip else j] = min(columns[j] + k, stops[j] - 1)
    return members


@inlined
def _unpack(bits: _Bytes, y: int, pixels: NDArray[np.uint64]) -> None:
    row = np.uintp(y)
    for x in range(np.uintp(len(pixels))):
        pixels[x] = _PIXELS[np.uintp(bits[row, x])]


@inlined
def _unpack_more(bits: _Bytes, y: int, pixels: NDArray[np.uint64]) -> None:
    """Pixels that are contours in this row too."""
    row = np.uintp(y)
    for x in range(np.uintp(len(pixels))):
        pixels[x] |= _PIXELS[np.uintp(bits[row, x])]


@inlined
def _or_seen(stored: _Bytes, columns: _Places, seen: _Bytes, start: int) -> None:
    for j in range(len(columns)):
        seen[0, start + j] |= stored[0, _MARGIN + columns[j]]


@inlined
def _to_float(seen: _Bytes, marks: _Floats) -> None:
    pixels = seen[0]
    for j in range(len(marks)):
        marks[j] = np.float32(pixels[j])


@inlined
def _count(bits: _Bytes) -> int:
    """Bits that are set."""
    total = 0
    for y in range(bits.shape[0]):
        for x in range(bits.shape[1]):
            total += _NUM_BITS[bits[y, x]]
    return total
