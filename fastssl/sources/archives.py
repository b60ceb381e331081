"""Tar archives, plain or compressed, in a folder and below, and their members by random access.

Formats are those of `tarfile`: V7, USTAR, GNU and PAX. Several archives joined by `cat` are read to the end of the
file. A compressed one is decompressed into a temporary file without a name, one at a time in a process. What a file is
compressed by its first bytes tell, whatever its name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from fastssl.errors import DataError
from fastssl.faults import machine_faults_named
from fastssl.sources.census import ending_reason, reason_against
from fastssl.sources.images import wanting
from fastssl.sources.regular import open_file

ARCHIVES = "*.tar, *.tar.gz, *.tgz, *.tar.bz2, *.tbz2, *.tar.xz or *.txz"
BLOCK = 512
"""Bytes; headers and members begin at multiples of it."""

_ARCHIVE = re.compile(r".+\.(tar|tar\.gz|tgz|tar\.bz2|tbz2?|tar\.xz|txz)", re.DOTALL | re.IGNORECASE)
_NOT_READ = {
    ".tar.zst": "zstd -d decompresses them",
    ".tzst": "zstd -d decompresses them",
    ".tar.lz4": "lz4 -d decompresses them",
    ".zip": "unpack them",
    ".7z": "unpack them",
    ".rar": "unpack them",
}
_DECOMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""How to open a compressed file, by its first bytes."""
_CHUNK = 1 << 20
_ROOM = "make room there, or let TMPDIR name another folder"

_SEPARATOR = re.compile(r"[/\\]")
_MEMBER = re.compile(r"((?:.*[/\\])?[^/\\.]+)\.([^/\\]+)", re.DOTALL)

LINKS = "links in archives"
SPARSE = "sparse files in archives"
SPECIAL = "special files in archives (pipes, devices, parts of volumes)"
HIDDEN = "hidden members of archives"


def is_archive(name: str) -> bool:
    """The name is that of an archive that can be read."""
    return _ARCHIVE.fullmatch(name) is not None


def not_read_reason(name: str) -> str | None:
    """The reason against an archive of a kind that cannot be read, from its name; None for all other files."""
    ending = next((ending for ending in _NOT_READ if name.lower().endswith(ending)), None)
    return None if ending is None else f"archives ending in {ending} ({_NOT_READ[ending]})"


def archives_below(top: Path) -> list[str]:
    """Paths of the archives below a folder, sorted.

    Hidden files and folders, folders of packed shards, and links that lead back up are passed over, just as
    `census.passed_over` counts them.

    Raises:
        DataError: a folder cannot be listed.
    """
    found: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        try:
            status = (top / below).stat()
            own = (status.st_dev, status.st_ino)
            if own in above:
                continue
            with os.scandir(top / below) as entries:
                used = [entry for entry in entries if reason_against(entry) is None]
            for entry in used:
                if is_archive(entry.name) and not entry.is_dir():
                    found.append(below + entry.name)
                elif entry.is_dir():
                    waiting.append((f"{below}{entry.name}/", above | {own}))
        except OSError as error:
            raise DataError("a folder cannot be listed", where=top / below, seen=error.strerror) from error
    return sorted(found)


class Opener:
    """Opens archives, and keeps the compressed one that was opened last, in its decompressed form.

    Each reader has a position of its own, so that threads may read one archive. It pickles without what it keeps.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._held: _Held | None = None

    def __reduce__(self) -> tuple[type[Opener], tuple[()]]:
        return (Opener, ())

    def open(self, path: Path) -> BinaryIO:
        """The archive, decompressed, for reading.

        Raises:
            DataError: it cannot be opened, is cut short or damaged, or no tar file.
            MachineError: there is no room to decompress it.
        """
        file = open_file(path, "an archive")
        try:
            decompressed = _decompressor(file, path)
            if decompressed is None:
                return file
        except BaseException:
            file.close()
            raise
        with file, self._lock:
            if self._path != path or self._held is None:
                self._path, self._held = None, None  # first, so that there is never room taken for two
                self._held, self._path = _unpacked(decompressed, path), path
            return io.BufferedReader(_View(self._held))


def check_whole(path: Path) -> None:
    """See that an archive ends as one does, or is compressed, which only decompressing can check.

    Raises:
        DataError: it does not, or cannot be opened.
    """
    with open_file(path, "an archive") as file:
        if _decompressor(file, path) is None:
            _check_end(file, path)


class Member(NamedTuple):
    """A file in an archive whose name has a key and a kind."""

    name: str
    key: str
    kind: str
    """What follows the first dot of its file name, in lower case."""
    part: int
    """Number of the archive, counted from where the reading began, if several are joined in a file."""
    offset: int
    """Where the first header begins."""
    start: int
    size: int
    """Where the content begins, and its bytes."""

    def content(self, file: BinaryIO) -> bytes:
        """The bytes.

        Raises:
            DataError: there are less.
        """
        file.seek(self.start)
        content = file.read(self.size)
        if len(content) != self.size:
            raise DataError("an archive is cut short", where=self.name, seen=f"{len(content)} of {self.size} bytes")
        return content


def members(
    file: BinaryIO, path: Path, start: int = 0, skipped: Callable[[str, str], None] | None = None
) -> Iterator[Member]:
    """Files of an archive that may belong to samples, from the header at an offset to the end of the file.

    Args:
        file: the archive, decompressed.
        path: what errors name.
        skipped: called with reason and name of every other member but folders.

    Raises:
        DataError: the archive is damaged, or cut short.
    """
    for part, header in _headers(file, path, start):
        name = _MEMBER.fullmatch(header.name)
        reason = _reason_against(header)
        if reason is None and name is not None:
            yield Member(header.name, name[1], name[2].lower(), part, header.offset, header.offset_data, header.size)
        elif skipped is not None and not header.isdir():
            skipped(reason or member_reason(header.name), header.name)


def member_reason(name: str) -> str:
    """The reason for a member that nobody needs, from its name."""
    reason, missing = ending_reason(name), wanting(Path(name).suffix)
    if missing is not None and missing not in reason:
        reason = f"{reason} ({missing} reads them)"
    return reason.replace("files", "members", 1)


def _reason_against(header: tarfile.TarInfo) -> str | None:
    """Why a member is passed over whatever it holds."""
    if header.issym() or header.islnk():
        return LINKS
    if header.issparse():
        return SPARSE
    if not header.isreg():
        return SPECIAL
    parts = _SEPARATOR.split(header.name)
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)
    return HIDDEN if hidden else None


def _headers(file: BinaryIO, path: Path, start: int) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Number of the part, and header, of all members of archives that may be joined."""
    place: int | None = start
    part = 0
    try:
        while place is not None:
            file.seek(place)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (header := tar.next()) is not None:
                    cast(Any, tar).members.clear()  # or all headers would stay in memory
                    if tar.offset <= header.offset:
                        raise tarfile.ReadError(f"a member of {header.size} bytes at byte {header.offset}")
                    yield part, header
                place = _next_part(file, tar.offset)
            part += 1
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise _damaged(path, str(error)) from error


def _next_part(file: BinaryIO, end: int) -> int | None:
    """Where the next of several joined archives begins; None at the end of the file.

    `tarfile` takes whatever it cannot parse for an end, so it is looked at.
    """
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"no header and no end at byte {end}")
    place = end + BLOCK
    while chunk := file.read(_CHUNK):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return place + zeros // BLOCK * BLOCK
        place += len(chunk)
    return None


def _decompressor(file: BinaryIO, path: Path) -> Any:
    """The file as its first bytes say that it is to be decompressed; None if it is not."""
    try:
        first = file.read(max(map(len, _DECOMPRESSED)))
        file.seek(0)
    except OSError as error:
        raise DataError("an archive cannot be read", where=path, seen=error.strerror) from error
    decompressed = next((kind for sign, kind in _DECOMPRESSED.items() if first.startswith(sign)), None)
    return None if decompressed is None else decompressed(file)


class _Held:
    """An unnamed file that closes, and so frees its room, when its last reader is gone."""

    def __init__(self, file: int) -> None:
        self.file = file
        weakref.finalize(self, os.close, file)


def _unpacked(compressed: BinaryIO, path: Path) -> _Held:
    """All of it, in a temporary file without a name."""
    room = tempfile.gettempdir()
    with machine_faults_named(room, hint=_ROOM):
        file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        while chunk := compressed.read(_CHUNK):
            with machine_faults_named(room, hint=_ROOM):
                file.write(chunk)
        with machine_faults_named(room, hint=_ROOM):
            file.flush()
        _check_end(file, path)
        return _Held(os.dup(file.fileno()))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, str(error)) from error
    finally:
        file.close()


class _View(io.RawIOBase):
    """A position of one's own in a file that others read too."""

    def __init__(self, held: _Held) -> None:
        self._held, self._place = held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._held.file, len(buffer), self._place)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: os.fstat(self._held.file).st_size}
        self._place = origin[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place


def _check_end(file: BinaryIO, path: Path) -> None:
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - BLOCK))
        last = file.read()
    except OSError as error:
        raise DataError("an archive cannot be read", where=path, seen=error.strerror) from error
    if size % BLOCK or last != bytes(BLOCK):
        raise _damaged(path, f"{size} bytes, of which the last ones are not an empty block")


def _damaged(path: Path, seen: str) -> DataError:
    return DataError(
        "an archive is cut short or damaged, or not a tar file",
        where=path,
        seen=seen,
        expected="whole blocks of 512 bytes, and an empty one at the end; as they are, or by gzip, bzip2 or xz",
        hint="copy it again; if it is compressed otherwise, decompress it",
    )
