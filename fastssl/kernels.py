"""Whether this machine can make kernels of its own."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@cache
def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works on a device, found out with a small function; where it does not, a line says why.

    It needs a C++ compiler on a CPU, and Triton, a C compiler and Python's headers on a GPU.
    """
    try:
        torch.compile(_small)(torch.ones(64, device=device))
    except Exception as error:  # whatever it is, training goes on without
        first = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("torch.compile does not work here, and the training goes on without: %s", first[0])
        return False
    return True


def _small(x: Tensor) -> Tensor:
    return x.relu().sum()
