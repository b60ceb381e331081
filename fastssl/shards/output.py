"""The place that packed files go to: a local folder, or a folder of any store that fsspec knows."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from fastssl.addresses import is_remote, local_path, masked
from fastssl.errors import MachineError, UsageError
from fastssl.faults import machine_error, machine_faults_named
from fastssl.files import PARTIAL, alone_in, complete_or_absent, open_regular, read_regular
from fastssl.shards.filesystem import filesystem_of


@dataclass(frozen=True)
class Output:
    """A folder whose files are complete or absent.

    Args:
        target: a path, or an address such as ``s3://bucket/rooms``, whose protocol needs fsspec's package for it.
    """

    target: str

    def __str__(self) -> str:
        return self.target

    @cached_property
    def _local(self) -> Path | None:
        return None if is_remote(self.target) else local_path(self.target)

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        filesystem, root = filesystem_of(self.target)
        if not root.strip("/"):
            raise UsageError(
                "the output's address names no place in the store",
                where=masked(self.target),
                expected="such as s3://bucket/rooms",
            )
        return filesystem, root.rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        return {"target": self.target}  # each process connects for itself

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none where it does not exist.

        Raises:
            UsageError: it cannot be listed.
        """
        try:
            if self._local is not None:
                return sorted(path.name for path in self._local.iterdir())
            filesystem, root = self._remote
            filesystem.invalidate_cache()
            with self._store_named():
                return sorted(name.rstrip("/").rpartition("/")[2] for name in filesystem.ls(root, detail=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(
                "the output folder cannot be used", where=self.target, seen=error.strerror or str(error)
            ) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The only packing that writes here, as far as the store has locks; a local folder is made.

        Raises:
            UsageError: another packing does.
            MachineError: the folder cannot be made.
        """
        if self._local is None:
            yield
            return
        with ExitStack() as stack:
            with machine_faults_named(self.target):
                try:
                    stack.enter_context(alone_in(self._local, "packing"))
                except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
                    raise UsageError(
                        "the output cannot be a folder",
                        where=self.target,
                        seen=error.strerror,
                        hint="choose another one",
                    ) from error
            yield

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            if self._local is not None:
                return read_regular(self._local / name)
            filesystem, root = self._remote
            with self._store_named(name):
                content: bytes = filesystem.cat_file(f"{root}/{name}")
            return content
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Size of a file, in bytes; None if there is none."""
        try:
            if self._local is not None:
                return (self._local / name).stat().st_size
            filesystem, root = self._remote
            with self._store_named(name):
                return int(filesystem.info(f"{root}/{name}")["size"])
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        """Hash of a local file; None in a store, from which all of it would have to be fetched."""
        if self._local is None:
            return None
        with open_regular(self._local / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        """A file that appears under its name when all of it is there, and not at all after an exception.

        Raises:
            MachineError: the store is full, or does not take it.
        """
        try:
            if self._local is not None:
                path = self._local / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with complete_or_absent(path) as file:
                    yield file
                return
            filesystem, root = self._remote
            with tempfile.NamedTemporaryFile(prefix="fastssl-") as spooled:
                yield spooled.file
                spooled.flush()
                with self._store_named(name):
                    filesystem.put_file(spooled.name, f"{root}/{name}")
        except OSError as error:
            where, hint = f"{self}/{name}", "then continue with --resume"
            raise machine_error(error, "a file cannot be written", where=where, hint=hint) from error

    def remove(self, name: str) -> None:
        """Remove a file or a folder."""
        if self._local is not None:
            path = self._local / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        filesystem, root = self._remote
        with self._store_named(name):
            filesystem.rm(f"{root}/{name}", recursive=True)

    @contextmanager
    def _store_named(self, name: str = "") -> Iterator[None]:
        """Errors of the store, which are of its own package, as ours; but for the one about a file that is not there.

        Raises:
            MachineError: the store does not answer, or refuses.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise MachineError(
                "the store does not take or give a file",
                where=masked(f"{self}/{name}".rstrip("/")),
                seen=masked(str(error)) or type(error).__name__,
                hint="see whether it answers, and whether it knows you (credentials), then continue with --resume",
            ) from error

    def remove_partial(self) -> None:
        """Remove what killed processes left behind under temporary names."""
        if self._local is not None:
            for path in self._local.rglob(f"*{PARTIAL}"):
                path.unlink()
