"""The files that keep machine code from one process to the next; loaded together with Numba, whose cache this mends."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import deflate
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime.nrt import rtsys

from fastssl.faults import was_importing

log = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4
_UNUSED_S = 60.0
"""Code that no index names for so long is nobody's; another process may be about to name what is younger."""


class CodeFiles(IndexDataCacheFile):
    """An index of one function's signatures, and a file of code for each.

    Numba numbers the files and writes the index first. So two processes that compile different signatures at once may
    each get the other's code, and one that is killed in between leaves an index of the present source that names the
    code of an older one: crashes, or wrong values. Here a name is used once, and the code is there before it is named;
    an entry that another process overwrites is only compiled again. Code comes with its checksum, for the processor
    would run whatever it has become.
    """

    is_spoilt = False
    """A file could not be used, so those that are kept from now on take its place."""

    def save(self, key: Any, data: Any) -> None:
        if not self.is_spoilt and self._is_kept(key):
            return
        name = self._data_name(uuid4().int)
        try:
            self._save_data(name, data)
            entries = {**self._load_index(), key: name}
            self._save_index(entries)
        except Exception:
            with suppress(OSError):
                Path(self._data_path(name)).unlink()
            raise
        with suppress(OSError):  # whoever keeps code next cleans up
            self._remove_unused(set(entries.values()))

    def _save_data(self, name: str, data: Any) -> None:
        code = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(_checksum(code) + code)

    def _load_data(self, name: str) -> Any:
        content = Path(self._data_path(name)).read_bytes()
        code = content[_CHECKSUM_BYTES:]
        if content[:_CHECKSUM_BYTES] != _checksum(code):
            raise ValueError(f"{name} is not as it was written")
        return pickle.loads(code)

    def _is_kept(self, key: Any) -> bool:
        """Another process was first, of the many that may begin at once."""
        try:
            return self.load(key) is not None
        except Exception:  # unpickling what is torn raises nearly anything
            return False

    def _remove_unused(self, used: set[str]) -> None:
        stem = self._index_name.removesuffix(".nbi")
        for path in Path(self._cache_path).iterdir():
            is_old_code = path.name.startswith(f"{stem}.") and path.suffix == ".nbc" and path.name not in used
            if is_old_code and time.time() - path.stat().st_mtime > _UNUSED_S:
                path.unlink()


def _checksum(code: bytes) -> bytes:
    return deflate.crc32(code).to_bytes(_CHECKSUM_BYTES, "little")


class KeptCode(FunctionCache):
    """Numba's cache, whose files may be torn, unreadable or impossible to write; its own lets the call fail then.

    A function that is in it needs Numba's runtime. Numba's own would load all that it needs to compile one, which takes
    0.09 s instead of 0.02; where one has to be compiled, that is loaded then.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        folder = Path(function.__code__.co_filename).parent
        self._cache_file = self._files = CodeFiles(self._cache_path, self._impl.filename_base, _stamp(folder))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception as error:  # unpickling what is torn raises nearly anything
            _pass_over(error)
            self._files.is_spoilt = True
            return None

    def save_overload(self, *arguments: Any) -> None:
        try:
            super().save_overload(*arguments)
        except Exception as error:  # it begins by reading what is there
            _pass_over(error)
            self._start_anew()

    def _start_anew(self) -> None:
        try:
            self.flush()
        except OSError as error:
            tell_once(error)


@cache
def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """State of all modules that a function of a folder may call: it is kept with them, and Numba's own looks at one."""
    paths = [*sorted(folder.glob("*.py")), Path(__file__).with_name("tile.py")]
    found = [(path.name, path.stat()) for path in paths]
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)


@cache
def _told() -> list[str]:
    return []


def _pass_over(error: Exception) -> None:
    """Go on without the cache, unless Numba itself could not be loaded: what is left of it fails in other ways.

    A module that does not exist is what a torn file names.
    """
    if was_importing(error) and not isinstance(error, ModuleNotFoundError):
        raise error
    tell_once(error)


def tell_once(error: Exception) -> None:
    """Log why functions are compiled anew in each process, the first time."""
    if not _told():
        _told().append(str(error))
        log.info(
            "compiled functions cannot be kept, or what was kept cannot be used, so they are compiled anew: %s "
            "(NUMBA_CACHE_DIR may name a folder that can be written to)",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
