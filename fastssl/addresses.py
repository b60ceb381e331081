"""Addresses of datasets: which are of a remote store, which of a file, and what of them may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from fastssl.errors import UsageError

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?'\")]*)\?[^\s'\")]*", re.IGNORECASE)


def is_remote(address: str | os.PathLike[str]) -> bool:
    """It is of a store, as ``s3://bucket/rooms``, and no local path; ``file://...`` is another way to write a path."""
    match = _SCHEME.fullmatch(os.fspath(address))
    return match is not None and match["scheme"].lower() != "file"


def remote_address(address: str | os.PathLike[str]) -> str:
    """A remote address with its scheme in small letters, as stores know it."""
    scheme, separator, rest = os.fspath(address).partition("://")
    return f"{scheme.lower()}{separator}{rest}"


def local_path(address: str | os.PathLike[str]) -> Path:
    """A path as it is, and that of ``file:///data/rooms`` or ``file://localhost/data/rooms``.

    What is escaped by percent signs is meant so, unless there is a file whose name has these very signs.

    Raises:
        UsageError: it is a file of another machine.
    """
    text = os.fspath(address)
    match = _SCHEME.fullmatch(text)
    if match is None or match["scheme"].lower() != "file":
        return Path(text)
    host, separator, rest = match["rest"].partition("/")
    if host.lower() not in ("", "localhost"):
        raise UsageError(
            "a file of another machine cannot be read",
            where=text,
            seen=f"machine {host}",
            expected="file:///PATH",
            do="give the path at which it is mounted here",
        )
    path = Path(separator + rest)
    return path if "%" not in rest or os.path.lexists(path) else Path(unquote(str(path), errors="surrogateescape"))


def masked(text: str) -> str:
    """Words in which no address shows a password or what signs it: neither ``user:password@`` nor ``?...``."""
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))
