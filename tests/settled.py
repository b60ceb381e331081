"""Waiting for what comes by itself, such as the end of a thread that nobody joins."""

from __future__ import annotations

import time
from collections.abc import Callable


def comes(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Answer of a condition that is waited for, for so long at most."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
