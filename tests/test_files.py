"""A file is complete or absent: after an exception, and after a kill in the middle of writing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastssl import files
from fastssl.files import complete_or_absent


def failing() -> Iterator[bytes]:
    yield b"second"
    raise ValueError("on purpose")


def test_replaced_in_one_step_and_kept_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with complete_or_absent(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(ValueError, match="on purpose"), complete_or_absent(path) as file:
        file.writelines(failing())
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_large_file_is_stored_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def note(descriptor: int, start: int, size: int) -> bool:
        assert os.fstat(descriptor).st_size == start + size
        told.append((start, size))
        return True

    monkeypatch.setattr(files, "begin_to_store", note)
    content = os.urandom(20_000_000)
    with complete_or_absent(tmp_path / "file") as file:
        for start in range(0, len(content), 30_000):
            file.write(content[start : start + 30_000])
    assert (tmp_path / "file").read_bytes() == content
    assert len(told) == 2
    assert told[1][0] == told[0][1]


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from fastssl.files import complete_or_absent
with complete_or_absent(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert not path.exists()
