"""Faults of the machine and of files, told apart by their causes; tried again, with a bound."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from fastssl import faults
from fastssl.errors import DataError, MachineError
from fastssl.faults import machine_error, machine_fault, machine_faults_named, patiently, was_importing


def caused_by(error: Exception) -> Exception:
    """An error of ours as a source raises it: what it met is the cause of the cause."""
    try:
        try:
            raise error
        except Exception as met:
            raise ValueError("in between") from met
    except ValueError as between:
        try:
            raise DataError("an image cannot be read", where="a/b.jpg", seen="x") from between
        except DataError as ours:
            return ours


@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EACCES, errno.ENOSPC],
)
def test_what_the_system_cannot_do_is_the_machines_fault(number: int) -> None:
    for error in (OSError(number, os.strerror(number)), caused_by(OSError(number, os.strerror(number)))):
        fault = machine_fault(error)
        assert isinstance(fault, OSError)
        assert fault.errno == number


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_is_not_there_is_the_datasets_fault(number: int) -> None:
    assert machine_fault(caused_by(OSError(number, os.strerror(number)))) is None


def test_damage_is_a_files_fault(tmp_path: Path) -> None:
    """Real decoders on real damage: none of their errors may be taken for the machine's."""
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(
        file, "TIFF", compression="tiff_lzw"
    )
    damaged = file.getvalue()[:100]
    h5 = tmp_path / "x.h5"
    h5.write_bytes(b"no such thing")
    for action in (
        lambda: Image.open(BytesIO(damaged)).load(),
        lambda: Image.open(BytesIO(b"nothing")),
        lambda: zlib.decompress(b"nothing"),
        lambda: h5py.File(h5),
        lambda: h5py.File(tmp_path / "missing.h5"),
        lambda: np.load(BytesIO(b"nothing")),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            action()
        assert machine_fault(caused_by(caught.value)) is None, caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("out of memory error when reading image file"),  # Pillow
        ValueError("Insufficient memory (case 4)"),  # libjpeg
        zlib.error("Error -4 while decompressing data"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
        SystemError("error return without exception set"),  # CPython, where a frame gets no memory
    ],
)
def test_every_way_to_be_out_of_memory_is_known(error: Exception) -> None:
    fault = machine_fault(caused_by(error))
    assert fault is not None
    assert "out of memory" in str(machine_error(fault))


def test_hdf5_and_the_loader_of_libraries_say_it_in_words() -> None:
    told = OSError(
        "Can't synchronously read data (file read failed: time = x, errno = 5, error message = 'Input/output error')"
    )
    dali = RuntimeError("nvimgcodec: libx.so: libx.so: cannot open shared object file: Input/output error\nmore words")
    for error in (told, dali, ImportError("/x/_y.so: cannot open shared object file: Input/output error")):
        fault = machine_fault(error)
        assert isinstance(fault, OSError)
        assert fault.errno == errno.EIO
    assert machine_fault(OSError("unable to open file: errno = 2, error message = 'No such file or directory'")) is None
    assert machine_fault(ImportError("libx.so: cannot open shared object file: No such file or directory")) is None


def failing(times: int, error: Exception) -> Callable[[], str]:
    def action() -> str:
        nonlocal times
        times -= 1
        if times >= 0:
            raise error
        return "done"

    return action


def test_a_passing_fault_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", waits.append)
    assert patiently(failing(3, OSError(errno.ESTALE, "stale")), where="x") == "done"
    assert waits == [0.1, 0.5, 2.5]


def test_a_lasting_fault_ends_in_an_error_that_names_all(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", waits.append)
    with pytest.raises(
        MachineError, match=r"an image cannot be read: .*input/output(.|\n)*a/b\.jpg(.|\n)*, then continue"
    ) as caught:
        patiently(failing(9, caused_by(OSError(errno.EIO, "Input/output error"))), where="y", hint="then continue")
    assert len(waits) == 3
    assert caught.value.exit_code == 4
    waits.clear()
    with pytest.raises(MachineError, match="access is denied"):
        patiently(failing(9, PermissionError(errno.EACCES, "Permission denied", "f")), where="y")
    assert not waits  # another try would meet it again


def test_other_errors_are_handed_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: pytest.fail("waited"))
    damaged = caused_by(ValueError("bad Huffman code"))
    with pytest.raises(DataError) as caught:
        patiently(failing(1, damaged), where="x")
    assert caught.value is damaged
    with pytest.raises(KeyError), machine_faults_named("x"):
        raise KeyError("ours")
    with pytest.raises(MachineError, match=r"the disk is full\n  where: x"), machine_faults_named("x"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("raise OSError(116, 'Stale file handle')", True),
        ("raise ImportError('libx.so: cannot read file data: Stale file handle')", True),
        ("def fail():\n    raise OSError(116, 'Stale file handle')", False),
    ],
)
def test_a_module_half_loaded_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: bool
) -> None:
    (tmp_path / "half_loaded.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "half_loaded", raising=False)
    with pytest.raises((OSError, ImportError)) as caught:
        importlib.import_module("half_loaded").fail()
    assert was_importing(caught.value) == expected
    assert machine_fault(caught.value) is not None
