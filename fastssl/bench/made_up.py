"""Batches of random numbers, for measurements that are to read nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.batch import Batch
from fastssl.methods import find_method


def made_up_batches(config: Any, device: torch.device, batch_size: int | None = None) -> dict[str, Batch]:
    """One batch of each domain that the configuration's method reads, as the loader would give it.

    Args:
        config: a method's.
        device: where the batches lie.
        batch_size: images of each; None = as the configuration has it.
    """
    side, generator = config.data.size, torch.Generator(device).manual_seed(0)
    precision = torch.float16 if config.train.amp and device.type == "cuda" else torch.float32
    batches: dict[str, Batch] = {}
    for request in find_method(config.method).domains(config):
        num = batch_size or config.data.batch_size(request.name)

        def random(channels: int, *, num: int = num) -> Tensor:
            # Like the loader's: channels lie together.
            pixels = torch.rand(num, side, side, channels, generator=generator, device=device)
            return pixels.permute(0, 3, 1, 2)

        targets = {
            "depth": 0.5 + 5 * random(1),
            "normal": normalize(random(3) - 0.5, dim=1),
            "edge": (random(1) < 0.1).float(),
            "valid": random(1) < 0.9,
            "stored_edge_fraction": torch.full((num,), 0.1, device=device),
            "class_index": torch.zeros(num, dtype=torch.int64, device=device),
            "position": torch.arange(num, device=device),
        }
        batches[request.name] = Batch(
            keys=tuple(f"{request.name}_{number}" for number in range(num)),
            image=(random(3) - 0.5).to(precision),
            targets=targets if request.targets else {},
            stored_size=(side, side),
        )
    return batches
