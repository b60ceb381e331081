"""Memory for batches that is used again."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class Memory:
    """Memory for batches, lent again when nothing is left of the batch that it was lent to; as much as ever was in use.

    New memory costs more than all the rest: the system clears its pages when they are first touched.

    Args:
        pinned: a GPU can fetch from it while the host goes on.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: list[NDArray[np.uint8]] = []

    def lend(self, num_bytes: int) -> NDArray[np.uint8]:
        """Bytes whose content is whatever it was."""
        memory = self._free.pop() if self._free else np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = _pinned(num_bytes) if self._pinned else np.empty(num_bytes, np.uint8)
        # Of its bytes, not a view: views of a view of an array hold the array alone, and `lent` would end too early.
        lent = np.frombuffer(memory.data, np.uint8, num_bytes)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent


def _pinned(num_bytes: int) -> NDArray[np.uint8]:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()
