from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.files import open_regular
from fastssl.sources.lists import numbered_lines
from fastssl.sources.regular import is_folder, is_regular


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", [(1, "a"), (2, "b")]),
        (b"\xef\xbb\xbfa\r\n\r\nb 1 \r\n\r\n", [(1, "a"), (3, "b 1")]),
        (b"\n  \t\na\rb", [(3, "a"), (4, "b")]),
        (b"", []),
    ],
)
def test_lines_are_read_as_editors_leave_them(tmp_path: Path, content: bytes, lines: list[tuple[int, str]]) -> None:
    (tmp_path / "list").write_bytes(content)
    assert list(numbered_lines(tmp_path / "list")) == lines


def test_what_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes("a\n".encode("utf-16"))
    with pytest.raises(UnicodeDecodeError):
        list(numbered_lines(tmp_path / "list"))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "alias").symlink_to("file")
    assert sorted(path.name for path in tmp_path.iterdir() if is_regular(path)) == ["alias", "file"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "to folder").symlink_to("folder")
    assert sorted(path.name for path in tmp_path.iterdir() if is_folder(path)) == ["folder", "to folder"]
    for path in (tmp_path / "missing", tmp_path / "file" / "below", tmp_path):
        assert not is_regular(path)
    open_regular(tmp_path / "alias").close()
    for name in ("pipe", "link", "loop", "missing", "."):
        with pytest.raises(OSError, match=r"not a regular file|No such file|symbolic links") as caught:
            open_regular(tmp_path / name)
        assert machine_fault(caught.value) is None


def test_what_cannot_be_told_is_not_taken_for_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "stat", stale)
    for look in (is_regular, is_folder):
        with pytest.raises(DataError) as caught:
            look(tmp_path)
        fault = machine_fault(caught.value)
        assert isinstance(fault, OSError)
        assert fault.errno == errno.ESTALE
