"""A consumer that uses batches late, drops them early and fills what memory it gets: batches must be as in calm.

On a GPU its kernels run behind slow ones, so that whatever is given away too early is overwritten before it is read. On
the CPU everything happens at once, and the same code tests the memory that the loader uses again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fastssl.batch import Batch
from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import (
    LoaderOptions,
    RankSlice,
    ViewSettings,
    endless_plan,
    load_batches,
    open_mixture,
)

KEPT = (0, 1, 2)
STEPS = 24


def begin(path: Path, options: LoaderOptions, *, targets: bool, batch_size: int = 8, **data: object) -> Iterator[Batch]:
    """The same random batches each time."""
    samples = open_mixture(path)
    seen = DataConfig.model_validate({"size": 115, "window": (0.6, 1.0), **data})
    rank_slice = RankSlice(order=samples.order(seed=5, stream=0), batch_size=batch_size)
    plan = endless_plan(ViewSettings(data=seen, augment=AugmentConfig(), stored=samples.image_size), rank_slice)
    return load_batches(samples, plan, options, None if targets else ())


def calm(batches: Iterator[Batch], device: torch.device) -> Tensor:
    """Digests of batches, each of which is waited for before and after it is used."""
    digests = []
    for batch in islice(batches, STEPS):
        wait(device)
        digests.append(digest(batch))
        wait(device)
    return torch.stack(digests)


def late(batches: Iterator[Batch], device: torch.device, kept: int) -> Tensor:
    """Digests of the same batches, used behind slow kernels, and nothing waited for.

    Args:
        kept: batches that the consumer holds while it asks for the next; each is used only then, and dropped at once.
    """
    slow, digests, held, filled = slow_kernels(device), list[Tensor](), deque[Batch](), list[Tensor]()
    while len(digests) < STEPS:
        held.append(next(batches))
        if len(held) <= kept:
            continue
        slow()
        digests.append(digest(held[0]))
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors(held[0])]
        held.popleft()
        filled[:] = [torch.full(shape, 1, dtype=dtype, device=device) for shape, dtype in shapes]
    return torch.stack(digests)


def digest(batch: Batch) -> Tensor:
    """(fields,) int64: of each field the bits of its elements, weighted by their places; integers, so in any order."""
    sums = []
    for tensor in tensors(batch):
        bits = tensor.contiguous().view(torch.uint8).flatten()
        weights = torch.arange(len(bits), device=bits.device) % 8191 + 1
        sums.append((bits * weights).sum())
    return torch.stack(sums)


def tensors(batch: Batch) -> list[Tensor]:
    return [batch.image, *batch.targets.values()]


def slow_kernels(device: torch.device) -> Callable[[], None]:
    """Work of some ten milliseconds on a GPU; next to none elsewhere."""
    side, repeats = (4096, 48) if device.type == "cuda" else (8, 1)
    factor = torch.zeros(side, side, dtype=torch.float16, device=device)
    product = torch.empty_like(factor)

    def work() -> None:
        for _ in range(repeats):
            torch.mm(factor, factor, out=product)

    return work


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
