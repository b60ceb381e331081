"""Header of a JPEG: its size, and its tables in the form in which the scan is read fastest.

Sections, tables and figures are those of ITU-T T.81.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssl.jpeg.layout import BLOCK, END_OF_BLOCK, LANES, LOOKED_AT, NATURAL_ORDER, UNFINISHED, WHOLE_CODE

# Markers (table B.1).
_SOI, _SOF0, _DHT, _SOS, _DQT, _APP0, _COM = 0xD8, 0xC0, 0xC4, 0xDA, 0xDB, 0xE0, 0xFE
_JFIF = b"JFIF\0\1"
"""And its version, of which 1 is the first number."""
_COMPONENTS = bytes((1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1))
"""Y, Cb and Cr: number, sampling factors (4:2:0) and quantisation table."""
_SCAN = bytes((3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0))
"""All three with their Huffman tables, and all coefficients at once."""
_SMALLEST = 16
"""Pixels of a side. libjpeg enlarges the colours of very narrow images in another way."""
_MOST_DC_BITS = 11
_MOST_HEADER_BYTES = 1 << 16

_Table = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Number of codes of each length from 1 on, and the symbols in the order of their codes."""


class Frame(NamedTuple):
    """A JPEG's header, and what follows from it. Tables come in pairs: of brightness, and of colours."""

    header: NDArray[np.uint8]
    """All bytes before the scan; equal bytes mean an equal frame."""
    height: int
    width: int
    factors: NDArray[np.int32]
    """(2, 64) quantisation, in rows."""
    dc: NDArray[np.int64]
    """(2, 2 ** LOOKED_AT) entries for each run of bits, as `_entries` makes them."""
    ac: NDArray[np.int64]
    """(2, 2 ** LOOKED_AT) the same, as `_pairs` makes them."""
    ends: NDArray[np.int64]
    """(4, WHOLE_CODE + 1) the first 16 bits that begin with no code of this length or a shorter one; DC, then AC."""
    offsets: NDArray[np.int64]
    """(4, WHOLE_CODE + 1) what a code of this length lacks to be the place of its symbol."""
    symbols: NDArray[np.int64]
    """(4, 256) in the order of their codes."""
    places: NDArray[np.int64]
    """(columns, 6) first coefficient of the blocks of each unit of 16 x 16 pixels in a row of units: four of
    brightness, and one of each colour."""


def frame_of(stream: bytes | NDArray[np.uint8]) -> Frame | None:
    """The frame of a JPEG.

    It is None where the JPEG is none that is decoded here, or damaged; and where a header is met for the first time,
    for a frame takes as long as a few images, and in some datasets each image has tables of its own.
    """
    content = bytes(stream[:_MOST_HEADER_BYTES])
    place = 2
    while content[:2] == bytes((0xFF, _SOI)) and place + 4 <= len(content) and content[place] == 0xFF:
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        stop = place + 2 + length
        if length < 2 or stop > len(content):
            return None
        if content[place + 1] == _SOS:
            return _frame(content[:stop]) if _is_known(content[:stop]) else None
        place = stop
    return None


def _is_known(header: bytes) -> bool:
    """Memory of headers: whether this one was met before, not too long ago; from now on it was."""
    meeting = _meeting(header)
    was_met, meeting.was_met = meeting.was_met, True
    return was_met


@dataclass(slots=True)
class _Meeting:
    was_met: bool = False


@lru_cache(maxsize=64)
def _meeting(header: bytes) -> _Meeting:
    return _Meeting()


class _UnusualError(Exception):
    """The header says something for which libjpeg is asked."""


@lru_cache(maxsize=16)
def _frame(header: bytes) -> Frame | None:
    """Of a header that ends with the scan's; None if there is anything unusual in it."""
    try:
        return _read(header)
    except _UnusualError:
        return None


def _read(header: bytes) -> Frame:
    factors, tables, start = dict[int, NDArray[np.int32]](), dict[int, _Table](), None
    place = 2
    while place < len(header):
        marker, stop = header[place + 1], place + 2 + int.from_bytes(header[place + 2 : place + 4], "big")
        segment = header[place + 4 : stop]
        if marker == _DQT:
            factors |= _read_factors(segment)
        elif marker == _DHT:
            tables |= _read_tables(segment)
        elif marker == _SOF0 and start is None:
            start = segment
        elif marker not in (_SOS, _COM) and not (marker == _APP0 and segment[:6] == _JFIF and len(segment) == 14):
            raise _UnusualError
        place = stop
    if start is None:
        raise _UnusualError
    is_ours = start[:1] == b"\x08" and start[5:] == b"\x03" + _COMPONENTS and segment == _SCAN
    if not is_ours or place != len(header) or factors.keys() != {0, 1} or tables.keys() != {0x00, 0x01, 0x10, 0x11}:
        raise _UnusualError
    height, width = int.from_bytes(start[1:3], "big"), int.from_bytes(start[3:5], "big")
    in_order = [tables[number] for number in (0x00, 0x01, 0x10, 0x11)]
    largest = max(int(symbols.max(initial=0)) for _, symbols in in_order[:2])
    if min(height, width) < _SMALLEST or largest > _MOST_DC_BITS:
        raise _UnusualError
    return _made(header, (height, width), np.stack([factors[0], factors[1]]), in_order)


def _made(header: bytes, size: tuple[int, int], factors: NDArray[np.int32], tables: list[_Table]) -> Frame:
    ends, offsets = zip(*(_long_codes(counts) for counts, _ in tables), strict=True)
    dc, ac = ([_entries(*table, is_dc=is_dc) for table in tables[2 * (not is_dc) :][:2]] for is_dc in (True, False))
    return Frame(
        header=np.frombuffer(header, np.uint8),
        height=size[0],
        width=size[1],
        factors=factors,
        dc=np.stack(dc),
        ac=np.stack([_pairs(entries) for entries in ac]),
        ends=np.stack(ends),
        offsets=np.stack(offsets),
        symbols=np.stack([np.pad(symbols, (0, 256 - len(symbols))) for _, symbols in tables]),
        places=_places(-(-size[1] // 16)),
    )


def _read_factors(segment: bytes) -> dict[int, NDArray[np.int32]]:
    """Quantisation tables of 8 bits (B.2.4.1) by their numbers."""
    if len(segment) % 65:
        raise _UnusualError
    found = {}
    for place in range(0, len(segment), 65):
        factors = np.zeros(64, np.int32)
        factors[NATURAL_ORDER] = np.frombuffer(segment, np.uint8, 64, place + 1)
        found[segment[place]] = factors
    return found


def _read_tables(segment: bytes) -> dict[int, _Table]:
    """Huffman tables (B.2.4.2) by class and number; each has as many symbols as codes, and no more than there are."""
    found, place = {}, 0
    while place + 17 <= len(segment):
        counts = np.frombuffer(segment, np.uint8, 16, place + 1).astype(np.int64)
        first, place, number = place + 17, place + 17 + int(counts.sum()), segment[place]
        symbols = np.frombuffer(segment[first:place], np.uint8).astype(np.int64)
        # The code of all ones is left out (C.2).
        room = (counts << (WHOLE_CODE - np.arange(1, WHOLE_CODE + 1))).sum()
        if len(symbols) > 256 or room >= 1 << WHOLE_CODE:
            raise _UnusualError
        found[number] = counts, symbols
    if place != len(segment):
        raise _UnusualError
    return found


def _entries(counts: NDArray[np.int64], symbols: NDArray[np.int64], *, is_dc: bool) -> NDArray[np.int64]:
    """For each run of LOOKED_AT bits the symbol that it begins with, and its value.

    From the lowest byte on: bits of code and value; step to the coefficient; value, 16 bits. Where the value has more
    bits than the run: UNFINISHED and the bits of the code; step; bits of the value. Where the code has: UNFINISHED.
    """
    lengths = np.repeat(np.arange(1, WHOLE_CODE + 1), counts)
    is_short = lengths <= LOOKED_AT
    # Codes are in order, so the runs that begin with them lie side by side.
    which = np.repeat(np.flatnonzero(is_short), 1 << (LOOKED_AT - lengths[is_short]))
    run, length, symbol = np.arange(len(which)), lengths[which], symbols[which]
    size, step = (symbol, 0) if is_dc else (symbol & 15, _steps(symbol))
    left = LOOKED_AT - length - size
    bits = run >> np.maximum(left, 0) & (1 << size) - 1
    value = np.where(2 * bits < 1 << size, bits - (1 << size) + 1, bits)  # F.2.2.1, figure F.12
    whole = np.where(left >= 0, length + size | (value & 0xFFFF) << 16, UNFINISHED | length | size << 16)
    return np.append(whole | step << 8, np.full((1 << LOOKED_AT) - len(which), UNFINISHED))


def _steps(symbol: NDArray[np.int64]) -> NDArray[np.int64]:
    """Coefficients that an AC symbol leads on (F.2.2.2): zeros and the value, 16 zeros, or all that are left."""
    return np.where(symbol & 15 > 0, (symbol >> 4) + 1, np.where(symbol == 0xF0, 16, END_OF_BLOCK))


def _pairs(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Entries with the next symbol too where its value is among the bits: else with the only one again.

    From the lowest byte on: bits of both; step to the first coefficient; its value, 16 bits; step to the second; bits
    of the first alone; the second's value, 16 bits.
    """
    length, step, value = entries & 127, entries >> 8 & 255, entries >> 16
    is_whole = entries & UNFINISHED == 0
    run = np.arange(1 << LOOKED_AT) << length & (1 << LOOKED_AT) - 1
    has_next = is_whole & is_whole[run] & (step != END_OF_BLOCK) & (length[run] <= LOOKED_AT - length)
    both = np.where(has_next, length + length[run], length)
    second_step = np.where(has_next, step + step[run], step)
    second_value = np.where(has_next, value[run], value)
    pair = both | step << 8 | value << 16 | second_step << 32 | length << 40 | second_value << 48
    return np.where(is_whole, pair, entries)


def _long_codes(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`ends` and `offsets` of a table (F.2.2.3, figure F.16)."""
    ends, offsets = np.zeros(WHOLE_CODE + 1, np.int64), np.zeros(WHOLE_CODE + 1, np.int64)
    code = num = 0
    for length, count in enumerate(counts.tolist(), 1):
        offsets[length] = num - code
        code, num = code + count, num + count
        ends[length] = code << (WHOLE_CODE - length)
        code *= 2
    return ends, offsets


def _places(columns: int) -> NDArray[np.int64]:
    """`Frame.places`: brightness lies in two rows of groups of LANES blocks, and then each colour in one."""
    unit = np.arange(columns)
    groups, colour_groups = -(-2 * columns // LANES), -(-columns // LANES)

    def place(first_group: int, block: NDArray[np.int64]) -> NDArray[np.int64]:
        return (first_group + block // LANES) * BLOCK + block % LANES

    brightness = [place(row * groups, 2 * unit + column) for row in (0, 1) for column in (0, 1)]
    colours = [place(2 * groups + colour * colour_groups, unit) for colour in (0, 1)]
    return np.stack([*brightness, *colours], axis=1)
