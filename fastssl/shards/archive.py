"""One shard as it is written: a USTAR archive and the files beside it, in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import IO

from fastssl.errors import DataError
from fastssl.shards.index import CHECKSUMS, INDEX, Location, checksum_line, file_of_lines, index_line
from fastssl.shards.tar import BLOCK, END, KEY, KEY_BYTES, member_header


class ShardFile:
    """A writer of samples into an open archive, which keeps what its index and the manifest need."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._keys: set[str] = set()
        self._index: list[str] = []
        self._checksums: list[str] = []
        self.num_bytes = 0

    @property
    def samples(self) -> int:
        return len(self._index)

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
        locations, blocks, start = list[Location](), list[bytes](), self.num_bytes
        for extension, content in members:
            name, padding = f"{key}.{extension}", bytes(-len(content) % BLOCK)
            blocks += member_header(name, len(content)), content, padding
            locations.append(Location(extension, start + BLOCK, len(content), name))
            start += BLOCK + len(content) + len(padding)
        self._write(b"".join(blocks))
        self._keys.add(key)
        self._index.append(index_line(locations))
        self._checksums.append(checksum_line(content for _, content in members))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(END)

    def companions(self) -> dict[str, bytes]:
        """The files beside the archive, by their suffixes."""
        return {
            INDEX: file_of_lines(INDEX, self._index),
            CHECKSUMS: file_of_lines(CHECKSUMS, self._checksums),
        }

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self.num_bytes += len(content)
