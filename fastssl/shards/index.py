"""The two files beside an archive, which say what is in it: a head with the number of samples, then a line per sample.

    000000.idx    v1.2 SAMPLES     DALI's index: EXTENSION OFFSET SIZE NAME of each member; the offset is of its data
    000000.crc    crc32 SAMPLES    checksums: the CRC-32 of each member, eight hexadecimal digits

Both are written and read here and nowhere else. A reader refuses a damaged file; a proof salvages what is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import deflate

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


def read_index(content: bytes, samples: int) -> Iterator[list[Location]]:
    """The members of each sample.

    Raises:
        ValueError: it is no index of so many samples.
    """
    for line in _lines(content, INDEX, samples):
        words = line.split(" ")
        yield [
            Location(extension, int(offset), int(size), name)
            for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True)
        ]


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
