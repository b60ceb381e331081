"""Native functions, and their fallbacks where a library does not have them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
from numpy.typing import NDArray

from fastssl import native
from fastssl.compiled import compiled

PLAIN = np.random.default_rng(0).integers(0, 4, 50_000, dtype=np.uint8)
PACKED = np.frombuffer(lz4.block.compress(PLAIN.tobytes(), store_size=False), np.uint8)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No function is found in any library."""
    cached = (native.lz4_decompress, native._sync_file_range)
    for function in cached:
        function.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda name: object())
        yield
    for function in cached:
        function.cache_clear()


@compiled
def _inflated(decompress: Any, block: NDArray[np.uint8], out: NDArray[np.uint8]) -> Any:
    return decompress(block.ctypes.data, out.ctypes.data, len(block), len(out))


def check_decompress() -> None:
    decompress = native.lz4_decompress()
    out = np.zeros(len(PLAIN), np.uint8)
    assert _inflated(decompress, PACKED, out) == len(PLAIN)
    np.testing.assert_array_equal(out, PLAIN)
    larger = np.zeros(len(PLAIN) + 100, np.uint8)
    assert _inflated(decompress, PACKED, larger) == len(PLAIN)
    np.testing.assert_array_equal(larger[: len(PLAIN)], PLAIN)
    smaller = np.zeros(len(PLAIN), np.uint8)
    assert _inflated(decompress, PACKED, smaller[:-100]) < 0  # and nothing is written behind its end
    assert not smaller[-100:].any()
    assert _inflated(decompress, PACKED[:-3].copy(), out) < 0
    assert _inflated(decompress, np.full(100, 255, np.uint8), out) < 0


def test_lz4_blocks_are_inflated_in_place() -> None:
    assert native.lz4_decompress() is not native._packages_decompress
    check_decompress()


@pytest.mark.usefixtures("no_library")
def test_without_the_library_the_package_inflates() -> None:
    assert native.lz4_decompress() is native._packages_decompress
    check_decompress()


def test_memory_is_copied() -> None:
    out = np.zeros(len(PLAIN), np.uint8)
    native.memcpy()(out.ctypes.data, PLAIN.ctypes.data, 40_000)
    np.testing.assert_array_equal(out[:40_000], PLAIN[:40_000])
    assert not out[40_000:].any()


@pytest.mark.usefixtures("no_library")
def test_a_c_library_without_mallopt_is_left_as_it_is() -> None:
    assert native.keep_freed_memory() is False


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without mallopt")
def test_freed_memory_is_used_again() -> None:
    """A hundred arrays of 8 MB, one after the other, are 2048 pages each that the system has to clear."""

    def faults(first: str) -> int:
        code = (
            f"import resource, numpy; from fastssl import native; {first}; numpy.ones(1 << 20)\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "for _ in range(100): numpy.ones(1 << 20)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
        )
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    kept, given_back = faults("assert native.keep_freed_memory()"), faults("pass")
    assert kept < given_back / 10


def test_a_file_is_stored_before_its_end_is_known(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(10_000))
        assert native.begin_to_store(file.fileno(), 0, 10_000) == sys.platform.startswith("linux")
        closed = file.fileno()
    assert not native.begin_to_store(closed, 0, 10_000)


@pytest.mark.usefixtures("no_library")
def test_a_system_without_such_a_call_stores_in_its_own_time() -> None:
    assert not native.begin_to_store(1, 0, 1)
