"""Functions of C libraries that no package offers to Python, each with what is done where a library lacks it."""

from __future__ import annotations

import ctypes
import signal
from functools import cache
from typing import Any

import lz4.block

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 28
# Of Linux' prctl.h.
_PR_SET_PDEATHSIG = 1
# Of Linux' fcntl.h.
_SYNC_FILE_RANGE_WRITE = 2

_ADDRESS = ctypes.c_size_t
_STORE = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_DECOMPRESS = (ctypes.c_int, _ADDRESS, _ADDRESS, ctypes.c_int, ctypes.c_int)


def keep_freed_memory() -> bool:
    """Let glibc give arrays of a megabyte from memory that it keeps, instead of new pages from the system each time.

    The system clears every page: for a photo of 640 x 480, 491 pages and 0.8 ms of the 2.5 that its packing takes
    without this. Four planes of 320 x 240 gain nothing.

    Returns:
        False where the C library has no such setting (musl, macOS): then nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, _KEPT_BYTES) for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


def terminated_with_parent() -> bool:
    """Let the system send this process SIGTERM when the one that began it ends, even by kill -9.

    Returns:
        False where the system has no such thing (macOS).
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl is not None and prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0


def begin_to_store(descriptor: int, start: int, size: int) -> bool:
    """Let the system begin to write a part of a file to the disk, and do not wait for it.

    Whether it fails, `fsync` still tells.

    Returns:
        False where the system has no such call (macOS), or the file system none: then nothing changes.
    """
    function = _sync_file_range()
    return function is not None and function(descriptor, start, size, _SYNC_FILE_RANGE_WRITE) == 0


@cache
def _sync_file_range() -> Any:
    try:
        return _function(ctypes.CDLL(None), "sync_file_range", *_STORE)
    except AttributeError:
        return None


@cache
def memcpy() -> Any:
    """C's ``memcpy(out, source, size)`` for compiled functions; every C library has it."""
    return _function(ctypes.CDLL(None), "memcpy", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)


@cache
def pread() -> Any:
    """POSIX' ``pread(descriptor, out, size, offset)`` for compiled functions; the number of bytes, below 0 = none."""
    size = ctypes.c_ssize_t
    return _function(ctypes.CDLL(None), "pread", size, ctypes.c_int, _ADDRESS, ctypes.c_size_t, ctypes.c_int64)


@cache
def lz4_decompress() -> Any:
    """``LZ4_decompress_safe(source, out, source_size, out_size)`` for compiled functions, which takes addresses.

    It returns the number of bytes, or a negative number for what is no LZ4 block. It is taken from the library inside
    the package `lz4`; where that does not show it, the package is called, which inflates into new memory and for that
    needs the interpreter's lock. A block of 59 kB takes 0.080 and 0.090 ms, in two threads 0.040 and 0.046.
    """
    try:
        return _function(ctypes.CDLL(lz4.block._block.__file__), "LZ4_decompress_safe", *_DECOMPRESS)
    except (AttributeError, OSError):
        return _packages_decompress


def _decompress_by_package(source: int, out: int, source_size: int, out_size: int) -> int:
    try:
        content: bytes = lz4.block.decompress(ctypes.string_at(source, source_size), uncompressed_size=out_size)
    except lz4.block.LZ4BlockError:
        return -1
    ctypes.memmove(out, content, len(content))
    return len(content)


_packages_decompress: Any = ctypes.CFUNCTYPE(*_DECOMPRESS)(_decompress_by_package)


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function
