"""Memory of a device while batches are trained on and iterators come and go, for the tests on the CPU and on a GPU."""

from __future__ import annotations

import gc
import os
from itertools import count
from pathlib import Path

import torch
from late_reading import begin, digest, slow_kernels, wait
from small_steps import method, small_config

from fastssl.loader import LoaderOptions, Maker

ROOM = 64 * 2**20
"""Bytes by which pools may still grow; they take memory in pieces of some tens of MiB."""


def memory_in_use(device: torch.device) -> int:
    """Bytes: of a GPU all that is not free, whoever has it; else of this process."""
    wait(device)
    # DALI's graphs hold one another, and with them what feeds them.
    gc.collect()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_training_takes_no_more(
    synthetic: Path, real: Path, device: torch.device, first: int, last: int, load_on: Maker = "cpu"
) -> None:
    """Memory after `first` steps is that after `last`."""
    half = device.type == "cuda"
    settings = small_config("data.size=115", f"train.amp={str(half).lower()}", "optim.pool_size=16")
    options = LoaderOptions(device=device, load_on=load_on, threads=2, half=half)
    step = method(settings, device)
    batches = {"synthetic": begin(synthetic, options, targets=True), "real": begin(real, options, targets=False)}
    for number in count(1):
        step({name: next(endless) for name, endless in batches.items()})
        if number == first:
            before = memory_in_use(device)
        if number == last:
            assert memory_in_use(device) < before + ROOM
            return


def assert_iterators_can_be_dropped(
    path: Path, device: torch.device, times: int, room: int = ROOM, load_on: Maker = "cpu"
) -> None:
    """Each after its first batch, whose use waits behind slow kernels: its values stay, and its memory goes.

    Args:
        times: iterators that are begun.
        room: bytes by which the least memory in the last quarter of them may be above the most in their first half. One
            that is kept on a CPU holds 9 MiB.
    """
    options = LoaderOptions(device=device, load_on=load_on, threads=2)
    slow = slow_kernels(device)
    digests, used = [], []
    for _ in range(times):
        batches = begin(path, options, targets=True)
        batch = next(batches)
        slow()
        digests.append(digest(batch))
        del batch, batches
        used.append(memory_in_use(device))
    assert min(used[-times // 4 :]) < max(used[: times // 2]) + room
    assert torch.equal(torch.stack(digests), digests[0].expand(times, -1))
    calm = next(begin(path, options, targets=True))
    wait(device)
    assert torch.equal(digest(calm), digests[0])
