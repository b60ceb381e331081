"""Work in which the host is not to wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def nobody_waits(device: torch.device) -> Iterator[None]:
    """An error wherever torch makes the host wait for the GPU in the block; nothing elsewhere than on one."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
