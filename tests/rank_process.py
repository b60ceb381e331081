"""One rank of a step of each method that is named: the averaged gradients of the first batch of shards, into files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastssl.batch import Batch
from fastssl.loader import LoaderOptions, training_domains
from fastssl.methods import StepContext, find_method, load_config
from fastssl.ranks import joined

SAMPLE = Path(__file__).parents[1] / "shards" / "sample"
SMALL = ["data.size=67", "model.width=0.2", "model.fc_channels=32", "train.threads=1", "train.channels_last=false"]


class Recording(StepContext):
    """A context that keeps the gradients of every update that is made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gradients: list[Tensor] = []

    def update(self, optimizer: Optimizer) -> None:
        if not self._is_last:
            return
        self._means[optimizer].finish()
        self.gradients += [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        super().update(optimizer)


def config(method: str, batch: int, *overrides: str) -> Any:
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}"]
    sizes = [f"data.batch_synthetic={batch}", f"data.batch_real={batch}"]
    return load_config("tiny", method=method, overrides=[*paths, *SMALL, *sizes, *overrides])


def first_batches(settings: Any, rank: int = 0, world_size: int = 1) -> dict[str, Batch]:
    domains = training_domains(find_method(settings.method).domains(settings), settings)
    options = LoaderOptions(device=torch.device("cpu"), threads=1)
    batches = {}
    for name, domain in domains.items():
        with domain.training_batches(options, rank=rank, world_size=world_size) as endless:
            batches[name] = next(endless)
    return batches


def part(batches: Mapping[str, Batch], rows: slice) -> dict[str, Batch]:
    """Some rows of each batch."""
    return {
        name: replace(
            batch,
            keys=batch.keys[rows],
            image=batch.image[rows],
            targets={target: plane[rows] for target, plane in batch.targets.items()},
        )
        for name, batch in batches.items()
    }


def gradients(settings: Any, batches: Mapping[str, Batch], *ranks: Any) -> list[Tensor]:
    """Of one step, on as many parts of the batches as the settings accumulate."""
    context = Recording(settings, torch.device("cpu"), *ranks)
    step, parts = find_method(settings.method)(settings, context), settings.train.accumulate
    size = len(next(iter(batches.values())).keys) // parts
    for number in range(parts):
        with context.part(number, parts):
            step(part(batches, slice(number * size, (number + 1) * size)))
    return context.gradients


def main() -> None:
    methods, batch, out, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        for method in methods.split(","):
            settings = config(method, int(batch), *overrides)
            batches = first_batches(settings, ranks.rank, ranks.world_size)
            found = gradients(settings, batches, ranks)
            keys = {name: batch.keys for name, batch in batches.items()}
            torch.save({"gradients": found, "keys": keys}, f"{out}.{method}.{ranks.rank}")


if __name__ == "__main__":
    main()
