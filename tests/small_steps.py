"""Small steps on made-up batches, for the tests on the CPU and for those on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastssl.batch import RealBatch, SyntheticBatch
from fastssl.config import Config, load_config
from fastssl.models import Networks, build_networks
from fastssl.train.step import TrainingStep

CPU = torch.device("cpu")
SIZE = 67
N = 4


def small_config(*overrides: str) -> Config:
    small = ["data.size=67", "model.fc_channels=32", "model.head_channels=8", "model.width=0.1", "optim.pool_size=0"]
    return load_config("tiny", overrides=[*small, *overrides])


def batches(seed: int, device: torch.device = CPU, size: int = SIZE) -> tuple[SyntheticBatch, RealBatch]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    synthetic = SyntheticBatch(
        keys=("a",) * N,
        image=random(N, 3, size, size) - 0.5,
        depth=0.5 + 5 * random(N, 1, size, size),
        normal=torch.nn.functional.normalize(random(N, 3, size, size) - 0.5, dim=1),
        edge=(random(N, 1, size, size) < 0.1).float(),
        valid=random(N, 1, size, size) < 0.9,
        stored_edge_fraction=torch.full((N,), 0.1, device=device),
    )
    return synthetic, RealBatch(
        keys=("b",) * N, image=random(N, 3, size, size) - 0.3, label=torch.full((N,), -1, device=device)
    )


def after_steps(
    settings: Config, steps: int = 3, device: torch.device = CPU, *, channels_last: bool = False, scale: float = 0.0
) -> tuple[Networks, list[dict[str, Tensor]]]:
    """The networks after some steps from one initialisation, and the losses of each step.

    Args:
        channels_last: of the networks and of the images.
        scale: with float16, that of the first step's gradients; 0 = as usual.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    networks = build_networks(settings.model, seed=1).to(device).to(memory_format=layout)
    step = TrainingStep(networks, settings, device)
    if scale:
        step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": scale})
    losses = []
    for number in range(steps):
        pair = batches(number, device, settings.data.size)
        synthetic, real = (replace(batch, image=batch.image.contiguous(memory_format=layout)) for batch in pair)
        losses.append(step(synthetic, real if networks.discriminator is not None else None))
    return networks, losses


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
    for before, after in zip(build_networks(settings.model, seed=1).parameters(), skipped.parameters(), strict=True):
        assert torch.equal(before, after.cpu())
    assert not same(skipped, taken)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Bit for bit the same parameters and statistics."""
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
