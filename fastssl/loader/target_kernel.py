"""From packed target blocks to the planes of a batch in one pass, compiled, on the CPU.

A sample's block is inflated into a buffer that stays in the cache, and each row of the output is made from it: values
from differences, down to the last row that is seen and over the seen columns alone; the nearest pixel of every output
pixel; units. The compiler turns a loop into vector instructions only if it is short and touches few arrays, so every
step is a function over one row of pixels.

What a block holds is written at `fastssl.shards.codec`, what comes out at `fastssl.batch.Batch`, and which
pixels are seen at `fastssl.loader.plan.Views`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import compiled
from fastssl.native import lz4_decompress, memcpy

_Bytes = NDArray[np.uint8]
_Words = NDArray[np.uint32]
_Floats = NDArray[np.float32]
_Mask = NDArray[np.bool_]
_Places = NDArray[np.int64]
_Number = TypeVar("_Number", np.uint8, np.uint32, np.float32)


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
        depth: (2, H, W) stored bytes, overwritten.
        normal: (H, 3 W) stored codes, overwritten.
        differ: rows are differences.
        place: one sample of `Seen`: rows, columns, flip.
        surface: depth (S, S), normal (3, S, S) and valid (S, S) to be filled.
    """
    rows, columns, flip = place
    metres, units, valid = surface
    size, left, right = len(rows), columns.min(), columns.max() + 1
    columns = columns - left
    stored_metres = np.empty(right - left, np.float32)
    stored_codes = np.empty(right - left, np.uint32)
    codes, scale = np.empty(size, np.uint32), np.empty(size, np.float32)
    y = 0 if differ else rows[0]
    for i in range(size):
        while y < rows[i]:
            y += 1
            if differ:
                _add(depth[0, y - 1][left:right], depth[0, y][left:right])
                _add(depth[1, y - 1][left:right], depth[1, y][left:right])
                _add(normal[y - 1][3 * left : 3 * right], normal[y][3 * left : 3 * right])
        _to_metres(depth[0, y][left:right], depth[1, y][left:right], stored_metres)
        _to_codes(normal[y][3 * left : 3 * right], stored_codes)
        _pick(stored_metres, columns, metres[i])
        _pick(stored_codes, columns, codes)
        _to_scale(codes, scale)
        for axis in range(3):
            _to_units(codes, axis, scale, units[axis, i])
        if flip:
            _negate(units[0, i])
        _to_valid(metres[i], codes, valid[i])


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


@compiled
def _weighted(
    codes: tuple[np.uint32, np.uint32, np.uint32, np.uint32], down: np.float32, along: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """255 times the sum of four normals (above left, above right, below left, below right) by their fractions."""
    x, y, z = np.float32(0), np.float32(0), np.float32(0)
    up, back = np.float32(1) - down, np.float32(1) - along
    fractions = (up * back, up * along, down * back, down * along)
    for k in range(4):
        if codes[k] != 0:
            x += fractions[k] * _coordinate(codes[k])
            y += fractions[k] * _coordinate(codes[k] >> 8)
            z += fractions[k] * _coordinate(codes[k] >> 16)
    return x, y, z


@compiled
def _add(above: _Bytes, row: _Bytes) -> None:
    for x in range(len(row)):
        row[x] += above[x]


@compiled
def _to_metres(low: _Bytes, high: _Bytes, metres: _Floats) -> None:
    for x in range(len(metres)):
        metres[x] = (np.float32(low[x]) + np.float32(256) * np.float32(high[x])) * np.float32(1e-3)


@compiled
def _to_codes(normal: _Bytes, codes: _Words) -> None:
    """The three codes of a pixel side by side in one number, so that they are picked at once."""
    for x in range(len(codes)):
        codes[x] = normal[3 * x] | normal[3 * x + 1] << 8 | normal[3 * x + 2] << 16


@compiled
def _pick(row: NDArray[_Number], columns: _Places, out: NDArray[_Number]) -> None:
    """The pixels of a row at these columns; runs as they are and mirrored ones are several times as fast."""
    size = len(out)
    if len(row) == size and columns[0] == 0:
        for j in range(size):
            out[j] = row[j]
    elif len(row) == size:
        for j in range(size):
            out[j] = row[np.uintp(size - 1 - j)]  # unsigned: no test for indices from the end
    else:
        for j in range(size):
            out[j] = row[np.uintp(columns[j])]


@compiled
def _coordinate(codes: np.uint32) -> np.float32:
    """255 times a coordinate of the normal, from the lowest byte.

    An odd whole number, so sums of squares are exact in whatever order.
    """
    return np.float32(2) * np.float32(np.int32(codes & 255)) - np.float32(255)


@compiled
def _to_scale(codes: _Words, scale: _Floats) -> None:
    for j in range(len(scale)):
        x, y, z = _coordinate(codes[j]), _coordinate(codes[j] >> 8), _coordinate(codes[j] >> 16)
        length = np.sqrt(x * x + y * y + z * z)
        scale[j] = np.float32(1) / length if codes[j] != 0 else np.float32(0)


@compiled
def _to_units(codes: _Words, axis: int, scale: _Floats, units: _Floats) -> None:
    for j in range(len(units)):
        units[j] = _coordinate(codes[j] >> 8 * axis) * scale[j]


@compiled
def _negate(row: _Floats) -> None:
    for j in range(len(row)):
        row[j] = -row[j]


@compiled
def _to_valid(metres: _Floats, codes: _Words, valid: _Mask) -> None:
    for j in range(len(valid)):
        valid[j] = (metres[j] > 0) & (codes[j] != 0)


@compiled
def _fill_edge(bits: _Bytes, cells: tuple[_Places, _Places, _Places, bool], edge: _Floats) -> None:
    """Contours of one sample: a pixel is one if any stored pixel of its cell is.

    Args:
        bits: (H, ceil(W / 8)) stored contours.
        cells: one sample of `Seen`: first rows, first columns, ends, flip.
        edge: (S, S) to be filled.
    """
    rows, columns, ends, flip = cells
    size = len(rows)
    pixels = np.empty(bits.shape[1], np.uint64)
    row = pixels.view(np.uint8)[columns[0] : ends[1]]
    members = _cell_members(columns, ends[1], flip)
    seen = np.empty(size, np.uint8)
    for i in range(size):
        stop = rows[i + 1] if i + 1 < size else ends[0]
        _any_row(bits, rows[i], max(stop, rows[i] + 1), pixels)
        _pick(row, members[0], seen)
        for k in range(1, len(members)):
            _or_picked(row, members[k], seen)
        _to_float(seen, edge[i])


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
    """(largest cell, S) columns of each cell's pixels, counted from the window's left; small cells repeat their last.

    A cell without a pixel of its own (the window is enlarged) has the nearest one.
    """
    size = len(columns)
    stops = np.empty(size, np.int64)
    for j in range(size):
        stops[j] = max(columns[j + 1] if j + 1 < size else end, columns[j] + 1)
    members = np.empty(((stops - columns).max(), size), np.int64)
    for j in range(size):
        for k in range(len(members)):
            members[k, size - 1 - j if flip else j] = min(columns[j] + k, stops[j] - 1) - columns[0]
    return members


@compiled
def _any_row(bits: _Bytes, start: int, stop: int, pixels: NDArray[np.uint64]) -> None:
    for x in range(len(pixels)):
        byte = bits[start, x]
        for y in range(start + 1, stop):
            byte |= bits[y, x]
        pixels[x] = _PIXELS[byte]


@compiled
def _or_picked(row: _Bytes, columns: _Places, out: _Bytes) -> None:
    for j in range(len(out)):
        out[j] |= row[np.uintp(columns[j])]


@compiled
def _to_float(seen: _Bytes, edge: _Floats) -> None:
    for j in range(len(edge)):
        edge[j] = np.float32(seen[j])


@compiled
def _count(bits: _Bytes) -> int:
    """Bits that are set."""
    total = 0
    for y in range(bits.shape[0]):
        for x in range(bits.shape[1]):
            total += _NUM_BITS[bits[y, x]]
    return total
