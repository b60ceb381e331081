"""Small steps of methods that learn from photos alone, and trainings on the sample photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import quiet
from torch import Tensor

from fastssl.batch import Batch
from fastssl.evaluate.subject import every_sample, run_subject
from fastssl.methods import METHODS, StepContext, load_config
from fastssl.methods.draws import Draws
from fastssl.methods.pretext import PretextNetworks
from fastssl.train import load_trained, start_run

SAMPLE = Path(__file__).parents[1] / "shards" / "sample"
SMALL = ["data.size=67", "model.width=0.1", "model.fc_channels=16", "train.channels_last=false"]


def method(name: str, *overrides: str) -> Any:
    config = load_config("tiny", method=name, overrides=[*SMALL, *overrides])
    return METHODS[name](config, StepContext(config, torch.device("cpu")))


def photos(image: Tensor, first: int = 0) -> Batch:
    """A batch of photos (N, 3, S, S) that stand at positions from `first` on; their classes are 0 and 1 in turn."""
    numbers = torch.arange(len(image))
    targets = {"position": numbers + first, "class_index": numbers % 2}
    return Batch(keys=("a",) * len(image), image=image, targets=targets)


def random_photos(num: int, side: int = 67, first: int = 0) -> Batch:
    return photos(torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(0)) - 0.45, first)


def draws(num: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(num))


def shuffled(monkeypatch: pytest.MonkeyPatch, networks: type[PretextNetworks]) -> None:
    """From now on these networks are taught the targets of others of the batch."""
    views, generator = networks.views, torch.Generator().manual_seed(0)

    def others(self: PretextNetworks, batch: Batch, numbers: Draws) -> tuple[Tensor, Tensor]:
        seen, target = views(self, batch, numbers)
        return seen, target[torch.randperm(len(target), generator=generator)]

    monkeypatch.setattr(networks, "views", others)


def trained(name: str, folder: Path, *overrides: str, data: Sequence[str] = ("real_train", "retrieval")) -> Path:
    """A run on sample photos.

    Args:
        data: sample datasets. `real_val` has no photo of `real_train`, and other crops of those of `retrieval`.
    """
    weights = ", ".join(f"{SAMPLE / one}: 1" for one in data)
    end = ["train.picture_every=100000", "train.checkpoint_every=100000"]
    start_run(load_config("tiny", method=name, overrides=[f"data.real={{{weights}}}", *end, *overrides]), folder, quiet)
    return folder


@torch.no_grad()
def held_out(run: Path, measure: Callable[[Any, Tensor], Tensor], times: int = 4) -> float:
    """The mean of a measure, of what the networks give of held-out photos and their targets.

    Args:
        times: every photo is seen so often, each time with other draws.
    """
    found, step = list[Tensor](), load_trained(run).method
    for number in range(times):
        domain = run_subject(run).domain("real", SAMPLE / "real_val", ("position", "class_index"))
        with every_sample(domain) as batches:
            for batch in batches:
                batch.position.add_(1000 * number)
                views, target = step.views(batch)  # type: ignore[attr-defined]
                found.append(measure(step.networks(views), target).reshape(-1))
    return float(torch.cat(found).mean())


def is_right(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == target).float()
