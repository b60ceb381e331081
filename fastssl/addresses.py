"""Addresses of datasets: which are of a remote store, which of a file, and what of them may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from fastssl.errors import UsageError

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_LOCAL = ("file", "local")
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?'\")]*)\?[^\s'\")]*", re.IGNORECASE)


def is_remote(address: str | os.PathLike[str]) -> bool:
    """It is of a store, as ``s3://bucket/rooms``, and no local path; ``file://...`` is another way to write a path."""
    match = _SCHEME.fullmatch(os.fspath(address))
    return match is not None and match["scheme"].lower() not in _LOCAL


def remote_address(address: str | os.PathLike[str]) -> str:
    """A remote address with its scheme in small letters, as stores know it."""
    scheme, separator, rest = os.fspath(address).partition("://")
    return f"{scheme.lower()}{separator}{rest}"


def local_path(address: str | os.PathLike[str]) -> Path:
    """A path as it is, and that of ``file:///data/rooms``, ``file://localhost/data/rooms`` or ``file:/data/rooms``.

    What is escaped by percent signs is meant so, unless there is a file whose name has these very signs.

    Raises:
        UsageError: it is a file of another machine, or names none.
    """
    text = os.fspath(address)
    if text.lower().startswith("file:/") and not text.lower().startswith("file://"):
        text = f"file://{text[len('file:') :]}"
    match = _SCHEME.fullmatch(text)
    if match is None or match["scheme"].lower() not in _LOCAL:
        return Path(text)
    host, separator, rest = match["rest"].partition("/")
    if host.lower() not in ("", "localhost"):
        raise UsageError(
            "a file of another machine cannot be read",
            where=text,
            seen=f"machine {host}",
            expected="file:///PATH",
            hint="give the path at which it is mounted here",
        )
    path = separator + rest
    if "%" in path and not os.path.lexists(path):
        path = unquote(path, errors="surrogateescape")
    if not path or "\0" in path:
        raise UsageError("an address names no file", where=text, expected="file:///PATH")
    return Path(path)


def masked(text: str) -> str:
    """Words in which no address shows a password or what signs it: neither ``user:password@`` nor ``?...``."""
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))
