"""The two files beside an archive, which say what is in it: a head with the number of samples, then a line per sample.

    000000.idx    v1.2 SAMPLES     DALI's index: EXTENSION OFFSET SIZE NAME of each member; the offset is of its data
    000000.crc    crc32 SAMPLES    checksums: the CRC-32 of each member, eight hexadecimal digits

Both are written and read here and nowhere else. A reader refuses a damaged file; a proof salvages what is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import deflate
import numpy as np
from numpy.typing import NDArray

from fastssl.shards.tar import NAME_BYTES

INDEX, CHECKSUMS = ".idx", ".crc"
"""Suffixes of the two files."""
_HEADS = {INDEX: "v1.2", CHECKSUMS: "crc32"}
_DIGITS = 18
"""Longer numbers than this are damaged ones."""


class Location(NamedTuple):
    """A member as an index line has it."""

    extension: str
    offset: int
    """First byte of its data in the archive."""
    size: int
    name: str


def beside(archive: str, suffix: str) -> str:
    """Name of an archive's index or file of checksums."""
    return archive.removesuffix(".tar") + suffix


def index_line(members: Iterable[Location]) -> str:
    """The line of a sample in the index."""
    return " ".join(f"{extension} {offset} {size} {name}" for extension, offset, size, name in members)


def checksum_line(contents: Iterable[bytes]) -> str:
    """The line of a sample in the file of checksums; by libdeflate, ten times as fast as zlib."""
    return " ".join(f"{deflate.crc32(content):08x}" for content in contents)


def file_of_lines(suffix: str, lines: list[str]) -> bytes:
    """The content of an index or a file of checksums."""
    return "\n".join([f"{_HEADS[suffix]} {len(lines)}", *lines, ""]).encode("ascii")


def read_index(content: bytes, samples: int, extensions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets and sizes of each sample's members.

    All lines at once, by NumPy: one by one, those of ten million samples would take half a minute.

    Returns:
        (samples, extensions) bytes each; where a sample lacks a member, the offset is -1 and the size 0.

    Raises:
        ValueError: it is no index of so many samples with no other members than these.
    """
    head, _, lines = content.partition(b"\n")
    text = np.frombuffer(lines if lines.endswith(b"\n") else lines + b"\n", np.uint8)
    stops = np.flatnonzero((text == ord(" ")) | (text == ord("\n")))
    ends_line = text[stops] == ord("\n")
    num_lines = np.count_nonzero(ends_line)
    if head != f"{_HEADS[INDEX]} {samples}".encode() or num_lines != samples:
        raise ValueError(f"{num_lines} lines under the head {head!r}")
    if len(stops) % 4 or np.count_nonzero(ends_line[3::4]) != samples:
        raise ValueError("a line is not made of four words for each member")
    starts = np.concatenate([[0], stops[:-1] + 1])
    row = np.cumsum(ends_line[3::4]) - ends_line[3::4]
    column = _columns(text, starts[::4], stops[::4], extensions)
    numbers = _numbers(text, starts.reshape(-1, 4)[:, 1:3], stops.reshape(-1, 4)[:, 1:3])
    offsets, sizes = np.full((samples, len(extensions)), -1), np.zeros((samples, len(extensions)), np.int64)
    offsets[row, column], sizes[row, column] = numbers.T
    return offsets, sizes


def _columns(
    text: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64], extensions: Sequence[str]
) -> NDArray[np.int64]:
    """Which of the extensions each of these words is."""
    column = np.full(len(starts), -1)
    for number, extension in enumerate(extensions):
        candidates = np.flatnonzero(stops - starts == len(extension))
        letters = text[starts[candidates, None] + np.arange(len(extension))]
        same = (letters == np.frombuffer(extension.encode(), np.uint8)).all(axis=1)
        column[candidates[same]] = number
    if column.min() < 0:
        first = int(column.argmin())
        raise ValueError(f"no member is called {text[starts[first] : stops[first]].tobytes()!r}")
    return column


def _numbers(text: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values of words that are decimal numbers."""
    digits = stops - starts
    if digits.min() < 1 or digits.max() > _DIGITS:
        raise ValueError(f"a number of {digits.min()} or {digits.max()} digits")
    values = np.zeros(digits.shape, np.int64)
    for place in range(digits.max()):
        # What stands before a shorter word, or at the text's other end, counts as 0.
        digit = np.where(place < digits, text[stops - 1 - place] - np.uint8(ord("0")), np.uint8(0))
        if digit.max() > 9:
            raise ValueError("a number has other characters than digits")
        values += digit * np.int64(10**place)
    return values


def read_checksums(content: bytes, samples: int) -> list[list[int]]:
    """The CRC-32 of each member of each sample.

    Raises:
        ValueError: it is no file of checksums of so many samples.
    """
    return [[int(word, 16) for word in line.split(" ")] for line in _lines(content, CHECKSUMS, samples)]


def _lines(content: bytes, suffix: str, samples: int) -> list[str]:
    head, *lines = content.decode("ascii").splitlines()
    if head != f"{_HEADS[suffix]} {samples}" or len(lines) != samples:
        raise ValueError(f"{len(lines)} lines under the head {head!r}")
    return lines


@dataclass(frozen=True, slots=True)
class Listed:
    """A member as a perhaps damaged index lists it."""

    row: int
    """Number of its sample in the shard."""
    column: int
    """Number of the member in its sample."""
    name: str
    size: int

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]


def salvaged_index(content: bytes) -> dict[int, Listed]:
    """The members in an index by the offsets of their data, as far as it can be understood."""
    listed: dict[int, Listed] = {}
    for row, words in enumerate(_lines_of_words(content)):
        for column in range(len(words) // 4):
            extension, offset, size, name = words[4 * column : 4 * column + 4]
            is_name = name.isascii() and len(name) <= NAME_BYTES and name.endswith(f".{extension}")
            if is_name and _is_number(offset) and _is_number(size):
                listed[int(offset)] = Listed(row, column, name, int(size))
    return listed


def salvaged_checksums(content: bytes) -> list[list[str]]:
    """The words of each sample's line of checksums, whatever they are."""
    return list(_lines_of_words(content))


def _lines_of_words(content: bytes) -> Iterator[list[str]]:
    for line in content.split(b"\n")[1:]:
        yield line.decode("ascii", "replace").split(" ")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS
