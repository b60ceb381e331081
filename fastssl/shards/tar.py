"""USTAR as shards use it: headers, blocks, and the keys that fit.

Nothing in the bytes depends on when, where or by whom they were written, and nothing needs an extension of the format:
names fit USTAR's 100 bytes (`webdataset` and both of DALI's indexers disagree about longer ones, silently).
"""

from __future__ import annotations

import re
import tarfile

BLOCK = 512
NAME_BYTES = 100
"""Size of the name field, which a header begins with; its prefix field stays empty."""
END = bytes(2 * BLOCK)
"""Two empty blocks, which end an archive."""
KEY_BYTES = 89
"""Longest key: with ``.labels.lz4`` it fills the name field."""
KEY = re.compile(rf"[0-9a-z_-]{{1,{KEY_BYTES}}}")


def member_header(name: str, size: int) -> bytes:
    """The block in front of a member's data: mode 0644, and 0 for the time and the owner."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def read_key(name: bytes) -> str:
    """A sample's key, from the name field of a member's header."""
    return name.rstrip(b"\0").decode("ascii", "replace").partition(".")[0]
