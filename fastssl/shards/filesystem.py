"""fsspec's file systems, by the address of a dataset."""

from __future__ import annotations

from typing import Any

from fastssl.addresses import masked, remote_address
from fastssl.errors import UsageError


def filesystem_of(address: str, *, for_reading: bool = False) -> tuple[Any, str]:
    """The file system of a remote address, and the path in it.

    Args:
        for_reading: whole shards will be fetched from it.

    Raises:
        UsageError: the protocol is not known, or its package is not installed.
    """
    address = remote_address(address)
    try:
        import fsspec

        options = _reading_options(address.partition("://")[0]) if for_reading else {}
        filesystem, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        raise UsageError(
            "the package for an address is not installed",
            where=masked(address),
            seen=masked(str(error)),
            hint="install the package that it names; pip install 'fastssl[remote]' has those for s3, gs and http",
        ) from error
    except ValueError as error:
        raise UsageError(
            "an address cannot be used",
            where=masked(address),
            seen=masked(str(error)),
            expected="a protocol such as s3://, gs:// or https://",
        ) from error
    return filesystem, path


def _reading_options(protocol: str) -> dict[str, Any]:
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        # By default a download ends after five minutes, however well it goes.
        return {"timeout": ClientTimeout(total=None)}
    if protocol in ("s3", "s3a"):
        # By default half a gigabyte of parts is gathered in memory before it is written.
        return {"max_concurrency": 1}
    return {}
