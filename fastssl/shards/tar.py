"""One shard: a USTAR archive and its DALI index, written in one pass, complete or absent.

Nothing in the bytes depends on when, where or by whom they were written, and nothing needs an extension of the format:
names fit USTAR's 100 bytes (`webdataset` and both of DALI's indexers disagree about longer ones, silently).
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Sequence
from typing import IO

import deflate

from fastssl.errors import DataError

KEY_BYTES = 89
"""Longest key: with ``.labels.lz4`` it fills the 100 bytes of a USTAR name."""
KEY = re.compile(rf"[0-9a-z_-]{{1,{KEY_BYTES}}}")
BLOCK = 512
CHECKSUMS = "crc32"
"""First word of a file of checksums; the number of samples follows."""


def checksum_line(contents: Iterable[bytes]) -> str:
    """CRC-32 of each member of a sample, eight hexadecimal digits each; by libdeflate, ten times as fast as zlib."""
    return " ".join(f"{deflate.crc32(content):08x}" for content in contents)


_MODEL = tarfile.TarInfo("-").tobuf(tarfile.USTAR_FORMAT)
"""A header whose mtime, uid and gid are 0, and the mode 0644, as those of all members."""


def _header(name: str, size: int) -> bytes:
    """What `tarfile` writes in front of a member, in a third of its time."""
    start = name.encode("ascii").ljust(100, b"\0") + _MODEL[100:124] + b"%011o" % size + _MODEL[135:148]
    end = _MODEL[156:]
    # The checksum counts its own eight bytes as spaces.
    return start + b"%06o\0 " % (sum(start) + 8 * 0x20 + sum(end)) + end


class ShardFile:
    """Appends samples to an open archive and keeps what its index and the manifest need."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._keys: set[str] = set()
        self._lines: list[str] = []
        self._checksums: list[str] = []
        self.num_bytes = 0

    @property
    def samples(self) -> int:
        return len(self._lines)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> None:
        """Append one sample, its members side by side and in the order given.

        Raises:
            DataError: the key is not one, or this shard has it already.
        """
        if not KEY.fullmatch(key):
            raise DataError("a key cannot be used", seen=repr(key), expected=f"{KEY_BYTES} of [0-9a-z_-] at most")
        if key in self._keys:
            raise DataError("two samples have the same key", seen=key, expected="a key of its own for each sample")
        entries = []
        for extension, content in members:
            name = f"{key}.{extension}"
            self._write(_header(name, len(content)))
            entries.append(f"{extension} {self.num_bytes} {len(content)} {name}")
            self._write(content + bytes(-len(content) % BLOCK))
        self._keys.add(key)
        self._lines.append(" ".join(entries))
        self._checksums.append(checksum_line(content for _, content in members))

    def finish(self) -> None:
        """Write the end of the archive: two empty blocks."""
        self._write(bytes(2 * BLOCK))

    def index(self) -> bytes:
        """The DALI index, version 1.2: per sample ``extension data-offset size name`` of each member."""
        return "\n".join([f"v1.2 {self.samples}", *self._lines, ""]).encode("ascii")

    def checksums(self) -> bytes:
        """The CRC-32 of every member: a line per sample, in the order of the index."""
        return "\n".join([f"{CHECKSUMS} {self.samples}", *self._checksums, ""]).encode("ascii")

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self.num_bytes += len(content)
