"""Only regular files are opened; nothing is waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources.images import read_image, read_plane
from fastssl.sources.regular import read_file


def test_a_pipe_a_socket_a_folder_and_a_device_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.jpg")
    Path("folder.jpg").mkdir()
    Path("link.jpg").symlink_to("pipe.jpg")
    Path("device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        kinds = {"pipe": "pipe", "link": "pipe", "folder": "folder", "device": "device", "socket": "socket"}
        for name, kind in kinds.items():
            path = Path(f"{name}.jpg")
            with pytest.raises(DataError, match=f"a {kind}(.|\n)*regular file") as caught:
                read_image(path)
            assert caught.value.where == path
            with pytest.raises(DataError, match=f"a {kind}"):
                read_plane(path, "L")


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert read_file(tmp_path / "b", "an image") == b"content"


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_fault_of_the_machine_stays_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")

    def stale(*_: object, **__: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, call, stale)
    with pytest.raises(DataError) as caught:
        read_image(path)
    monkeypatch.undo()
    fault = machine_fault(caught.value)
    assert isinstance(fault, OSError)
    assert fault.errno == 116
