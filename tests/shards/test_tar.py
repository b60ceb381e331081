from __future__ import annotations

import pytest

from fastssl.shards.tar import KEY_BYTES, member_header


@pytest.mark.parametrize("size", [0, 1, 511, 512, 67890, 8**11 - 1])
@pytest.mark.parametrize("name", ["0.cls", "room-0001_hallway.labels.lz4", "k" * KEY_BYTES + ".labels.lz4"])
def test_headers_are_those_of_posix(name: str, size: int) -> None:
    """The fields of POSIX.1-1988's ustar interchange format, put together by hand."""
    before = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    behind = b"0" + bytes(100) + b"ustar\00000" + bytes(32 + 32 + 8 + 8 + 155 + 12)  # no link, owner, device or prefix
    checksum = sum(before) + sum(behind) + 8 * ord(" ")
    assert member_header(name, size) == before + b"%06o\0 " % checksum + behind
