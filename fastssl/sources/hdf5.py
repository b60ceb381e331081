"""HDF5 files, whose faults are errors that name them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastssl.errors import DataError
from fastssl.files import open_regular


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file, as h5py has it; whatever fails while it is open, such as reading an array, is the file's fault.

    Raises:
        DataError: it is missing, damaged, no HDF5, or lacks what is asked of it.
    """
    import h5py

    try:
        open_regular(path).close()  # h5py would wait for a pipe
        # Files are only read, and network file systems often refuse locks.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError("an HDF5 file is missing", where=path) from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError("an HDF5 file cannot be read", where=path, seen=str(error)) from _of_the_system(error)


def _of_the_system(error: Exception) -> Exception:
    """The error, as an `OSError` if the system refused to read.

    While h5py looks for an array, it raises a `KeyError` for that, and only its words tell of the system.
    """
    if isinstance(error, OSError) or "errno = " not in str(error):
        return error
    refused = OSError(str(error))
    refused.__cause__ = error
    return refused
