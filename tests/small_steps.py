"""Small steps on made-up batches, for the tests on the CPU and for those on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastssl.batch import Batch
from fastssl.config import Config
from fastssl.methods import StepContext, load_config
from fastssl.methods.cross_domain import CrossDomain, Networks

CPU = torch.device("cpu")
SIZE = 67
N = 4
SMALL = (
    "data.size=67", "train.seed=1", "model.fc_channels=32", "model.head_channels=8", "model.width=0.1",
    "optim.pool_size=0", "train.channels_last=false",
)  # fmt: skip


def small_config(*overrides: str) -> Config:
    return load_config("tiny", overrides=[*SMALL, *overrides])


def batches(seed: int, device: torch.device = CPU, size: int = SIZE) -> dict[str, Batch]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    synthetic = Batch(
        keys=("a",) * N,
        image=random(N, 3, size, size) - 0.5,
        targets={
            "depth": 0.5 + 5 * random(N, 1, size, size),
            "normal": torch.nn.functional.normalize(random(N, 3, size, size) - 0.5, dim=1),
            "edge": (random(N, 1, size, size) < 0.1).float(),
            "valid": random(N, 1, size, size) < 0.9,
            "stored_edge_fraction": torch.full((N,), 0.1, device=device),
        },
        stored_size=(size, size),
    )
    # Methods that learn from photos alone read these.
    numbers = {"class_index": torch.arange(N, device=device) % 2, "position": torch.arange(N, device=device) + N * seed}
    real = Batch(keys=("b",) * N, image=random(N, 3, size, size) - 0.3, targets=numbers)
    return {"synthetic": synthetic, "real": real}


def method(settings: Config, device: torch.device = CPU) -> CrossDomain:
    return CrossDomain(settings, StepContext(settings, device))


def after_steps(
    settings: Config, steps: int = 3, device: torch.device = CPU, *, channels_last: bool = False, scale: float = 0.0
) -> tuple[Networks, list[dict[str, Tensor]]]:
    """The networks after some steps from one initialisation, and the losses of each step.

    Args:
        channels_last: of the networks and of the images.
        scale: with float16, that of the first step's gradients; 0 = as usual.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    train = settings.train.model_copy(update={"channels_last": channels_last})
    step = method(settings.model_copy(update={"train": train}), device)
    if scale:
        scaler = step.context.scaler
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
    losses = []
    for number in range(steps):
        made = batches(number, device, settings.data.size)
        seen = {name: batch.image.contiguous(memory_format=layout) for name, batch in made.items()}
        losses.append(step({name: replace(batch, image=seen[name]) for name, batch in made.items()}))
    return step.networks, losses


def assert_two_streams_equal_one(settings: Config, device: torch.device, **how: Any) -> None:
    """Bit for bit; and one stream equals itself, or the comparison would say nothing of the streams."""
    made = []
    for streams in (False, False, True):
        train = settings.train.model_copy(update={"streams": streams})
        networks, _ = after_steps(settings.model_copy(update={"train": train}), 6, device, **how)
        made.append(networks)
    assert same(made[0], made[1]), "one stream differs from itself"
    assert same(made[0], made[2])


TOO_LARGE = 1e30
"""A scale under which gradients of float16 are infinite."""


def assert_a_step_of_infinite_gradients_is_skipped(device: torch.device) -> None:
    """Nothing but the statistics of normalisation has changed after it."""
    settings = small_config("train.amp=true", "train.amp_dtype=float16")
    skipped, _ = after_steps(settings, 1, device, scale=TOO_LARGE)
    taken, _ = after_steps(settings, 1, device, scale=1.0)
    for before, after in zip(method(settings).networks.parameters(), skipped.parameters(), strict=True):
        assert torch.equal(before, after.cpu())
    assert not same(skipped, taken)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Bit for bit the same parameters and statistics."""
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
