"""Huffman codes of a baseline scan to coefficients (ITU-T T.81, F.2.2).

What makes it fast: a look into a table gives a symbol with its value, and often two of them; the bits at hand are
filled up once for two looks, eight bytes at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.compiled import inlined, kernel
from fastssl.jpeg.frame import Frame
from fastssl.jpeg.layout import END_OF_BLOCK, LANES, LOOKED_AT, NATURAL_ORDER, NO_CODE, UNFINISHED, WHOLE_CODE
from fastssl.jpeg.memory import byte_at, word_at

Place = tuple[np.uintp, np.uint64, np.uint64, np.uint64]
"""Where a scan is being read: the address of the next byte; bits at hand, from the highest on; their number; and how
many bits there were in all that stand for what is missing behind the end."""

_LAST = np.uintp(63)
_PLACES = np.append(NATURAL_ORDER, np.full(2 * END_OF_BLOCK, 64)).astype(np.uint16) * np.uint16(LANES)
"""Place of each coefficient in the first lane, and of all that lie behind the last, which nobody looks at."""
_ONES, _SEVENS = np.uint64(0x0101010101010101), np.uint64(0x7F7F7F7F7F7F7F7F)


@kernel
def read_units(
    place: Place,
    end: np.uintp,
    frame: Frame,
    predictions: NDArray[np.int64],
    coefficients: NDArray[np.int16],
) -> tuple[Place, bool]:
    """Read a row of units of 16 x 16 pixels.

    Args:
        place: where the row begins.
        end: address of the marker that ends the JPEG, in two bytes.
        frame: the JPEG's.
        predictions: (3,) DC coefficient of each component's last block; changed.
        coefficients: zeros, of which those that are given are filled; laid out as `Frame.places` says.

    Returns:
        Where the row ends, and whether it is sound so far.
    """
    is_sound = True
    for unit in range(np.uintp(len(frame.places))):
        for block in range(np.uintp(6)):
            colour = block - np.uintp(3) if block > np.uintp(3) else np.uintp(0)
            first = np.uintp(frame.places[unit, block])
            place, predictions[colour], is_block_sound = _read_block(
                place, end, frame, min(colour, np.uintp(1)), first, predictions[colour], coefficients
            )
            is_sound &= is_block_sound
    return place, is_sound


@inlined
def _read_block(
    place: Place,
    end: np.uintp,
    frame: Frame,
    table: np.uintp,
    first: np.uintp,
    prediction: np.int64,
    coefficients: NDArray[np.int16],
) -> tuple[Place, np.int64, bool]:
    """Read a block; where it ends, its DC coefficient, and whether it is sound."""
    at, bits, count, missing = _fill(end, place)
    entry, step = frame.dc[table, bits >> np.uint64(64 - LOOKED_AT)], np.uintp(0)
    length, difference = np.uint64(entry & 255), np.int64(np.int16(entry >> 16))
    if entry & UNFINISHED:
        length, step, difference = _long(bits, entry, frame, table)
    is_code = step != np.uintp(NO_CODE)
    bits, count, prediction = bits << length, count - length, prediction + difference
    coefficients[first] = prediction
    k = np.uintp(0)
    while k < _LAST:
        if count < np.uint64(32):
            at, bits, count, missing = _fill(end, (at, bits, count, missing))
        entry = frame.ac[table, bits >> np.uint64(64 - LOOKED_AT)]
        if entry & UNFINISHED:
            length, step, value = _long(bits, entry, frame, table + np.uintp(2))
            bits, count, k = bits << length, count - length, k + step
            coefficients[first + np.uintp(_PLACES[k])] = value
            continue
        length, k = _store(entry, k, first, coefficients)
        bits, count = bits << length, count - length
        # Bits are left for another look, unless that finds what takes more of them.
        entry = frame.ac[table, bits >> np.uint64(64 - LOOKED_AT)]
        if k < _LAST and entry & UNFINISHED == 0:
            length, k = _store(entry, k, first, coefficients)
            bits, count = bits << length, count - length
    is_whole = k == _LAST or k >= np.uintp(END_OF_BLOCK)
    return (at, bits, count, missing), prediction, bool(is_code and is_whole)


@inlined
def _store(
    entry: np.int64, k: np.uintp, first: np.uintp, coefficients: NDArray[np.int16]
) -> tuple[np.uint64, np.uintp]:
    """Store the one or two values of an entry; the bits that they take, and the coefficient that is reached."""
    one, two = k + np.uintp(entry >> 8 & 255), k + np.uintp(entry >> 32 & 255)
    coefficients[first + np.uintp(_PLACES[one])] = np.int16(entry >> 16)
    if one >= _LAST:
        # What follows belongs to the next block, and is no AC symbol.
        return np.uint64(entry >> 40 & 127), one
    coefficients[first + np.uintp(_PLACES[two])] = np.int16(entry >> 48)
    return np.uint64(entry & 127), two


@inlined
def _long(bits: np.uint64, entry: np.int64, frame: Frame, table: np.uintp) -> tuple[np.uint64, np.uintp, np.int64]:
    """A symbol that takes more bits than a look has: its bits, its step and its value."""
    length, step, size = np.uint64(entry & 127), np.uintp(entry >> 8 & 255), np.uint64(entry >> 16 & 15)
    if length == np.uint64(0):
        length, symbol = _long_code(bits, frame, table)
        size = np.uint64(symbol & 15)
        if symbol < 0:
            return length, np.uintp(NO_CODE), np.int64(0)
        step = np.uintp((symbol >> 4) + 1)
        if size == np.uint64(0):
            step = np.uintp(16 if symbol == 0xF0 else END_OF_BLOCK)
    left = bits << length
    value, half = np.int64(left >> np.uint64(1) >> (np.uint64(63) - size)), np.int64(1) << np.int64(size) >> np.int64(1)
    return length + size, step, value - (2 * half - 1 if value < half else 0)


@inlined
def _long_code(bits: np.uint64, frame: Frame, table: np.uintp) -> tuple[np.uint64, np.int64]:
    """Length and symbol of a code by the slow way; -1 if the bits are no code."""
    top = np.int64(bits >> np.uint64(64 - WHOLE_CODE))
    for length in range(1, WHOLE_CODE + 1):
        if top < frame.ends[table, length]:
            return np.uint64(length), frame.symbols[
                table, (top >> (WHOLE_CODE - length)) + frame.offsets[table, length]
            ]
    return np.uint64(WHOLE_CODE), np.int64(-1)


@inlined
def _fill(end: np.uintp, place: Place) -> Place:
    """Add bytes until no other fits among the 64 bits at hand."""
    at, bits, count, missing = place
    word = np.uint64(0)
    is_plain = at + np.uintp(6) <= end
    if is_plain:
        word = word_at(at)
        # Whether a byte is 0xFF: the only one whose lower seven bits carry over and whose highest is set too.
        is_plain = ((word & _SEVENS) + _ONES) & word & (_ONES << np.uint64(7)) == np.uint64(0)
    if is_plain:
        bits |= word >> count
        at += np.uintp((np.uint64(63) - count) >> np.uint64(3))
        count |= np.uint64(56)
    else:
        while count <= np.uint64(56):
            byte = byte_at(at)
            if byte == np.uint8(0xFF) and byte_at(at + np.uintp(1)) != np.uint8(0):
                missing += np.uint64(63) - count
                count = np.uint64(63)
            else:
                at += np.uintp(2 if byte == np.uint8(0xFF) else 1)
                bits |= np.uint64(byte) << (np.uint64(56) - count)
                count += np.uint64(8)
    return at, bits, count, missing
