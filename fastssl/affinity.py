"""The cores that a rank computes on: those next to its GPU, of which no other rank takes any."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch

from fastssl.telemetry import nvml_handle

log = logging.getLogger(__name__)

_WORD_BITS = 64


def bind_to_gpu(local_rank: int) -> None:
    """Let this process, and the threads that it begins from now on, run on its share of the cores next to its GPU.

    Where Slurm has bound the process to some cores already, it stays there; and where NVML does not answer, everywhere.
    torch's launchers leave all ranks the same cores, which are then dealt out, be they all or those of a container.

    Args:
        local_rank: number of the rank on this machine, and of its GPU. There are as many ranks as LOCAL_WORLD_SIZE
            says, or as there are GPUs.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) < (os.cpu_count() or 0) and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count()))
    near = [cores_near(index) & allowed for index in range(ranks)]
    own = own_cores(near, local_rank)
    if own:
        os.sched_setaffinity(0, own)
        log.info("rank %d of this machine runs on %d cores next to its GPU", local_rank, len(own))


def own_cores(near: Sequence[set[int]], rank: int) -> set[int]:
    """A rank's equal part of the cores that are near its GPU, dealt out among the ranks whose GPUs have the same ones.

    Args:
        near: cores near the GPU of each rank of the machine.
        rank: this one.
    """
    sharing = [other for other, cores in enumerate(near) if cores == near[rank]]
    return set(sorted(near[rank])[sharing.index(rank) :: len(sharing)])


def cores_near(index: int) -> set[int]:
    """Cores of the same memory as torch's GPU of this number; none where NVML does not tell."""
    import pynvml

    handle = nvml_handle(index)
    if handle is None:
        return set()
    num_words = -(-(os.cpu_count() or 1) // _WORD_BITS)
    try:
        words = pynvml.nvmlDeviceGetCpuAffinity(handle, num_words)
    except pynvml.NVMLError:
        return set()
    return {
        word * _WORD_BITS + bit for word, bits in enumerate(words) for bit in range(_WORD_BITS) if int(bits) >> bit & 1
    }
