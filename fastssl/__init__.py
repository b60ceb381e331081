"""fastssl: visual features without labels, from synthetic imagery, at the speed of the hardware.

    import fastssl

    fastssl.pack(fastssl.open_source("photos"), "packed", size=256, workers=8)
    with fastssl.load("packed", batch_size=64, size=227) as batches:
        for batch in batches:
            ...

What costs time is loaded when it is first used: packing and reading need neither torch nor DALI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastssl.export.loading import load_backbone
    from fastssl.loader.load import Loader, load
    from fastssl.shards import ShardSet, pack, read_samples
    from fastssl.sources import open_source

__version__ = "0.1.0"

__all__ = ["Loader", "ShardSet", "__version__", "load", "load_backbone", "open_source", "pack", "read_samples"]

_HOMES = {
    "Loader": "fastssl.loader.load",
    "load": "fastssl.loader.load",
    "load_backbone": "fastssl.export.loading",
    "ShardSet": "fastssl.shards",
    "pack": "fastssl.shards",
    "read_samples": "fastssl.shards",
    "open_source": "fastssl.sources",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastssl' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ImportError as error:
        from fastssl.extras import extra_needed

        raise extra_needed(error) or error from error
    return getattr(home, name)
