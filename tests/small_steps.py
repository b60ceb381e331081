"""Small steps on made-up batches, for the tests on the CPU and for those on a GPU."""

from __future__ import annotations

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


def batches(seed: int, device: torch.device = CPU) -> tuple[SyntheticBatch, RealBatch]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    synthetic = SyntheticBatch(
        keys=("a",) * N,
        image=random(N, 3, SIZE, SIZE) - 0.5,
        depth=0.5 + 5 * random(N, 1, SIZE, SIZE),
        normal=torch.nn.functional.normalize(random(N, 3, SIZE, SIZE) - 0.5, dim=1),
        edge=(random(N, 1, SIZE, SIZE) < 0.1).float(),
        valid=random(N, 1, SIZE, SIZE) < 0.9,
        stored_edge_fraction=torch.full((N,), 0.1, device=device),
    )
    return synthetic, RealBatch(
        keys=("b",) * N, image=random(N, 3, SIZE, SIZE) - 0.3, label=torch.full((N,), -1, device=device)
    )


def after_steps(
    settings: Config, steps: int = 3, device: torch.device = CPU
) -> tuple[Networks, list[dict[str, Tensor]]]:
    """The networks after some steps from one initialisation, and the losses of each step."""
    networks = build_networks(settings.model, seed=1).to(device)
    step = TrainingStep(networks, settings, device)
    losses = []
    for number in range(steps):
        synthetic, real = batches(number, device)
        losses.append(step(synthetic, real if networks.discriminator is not None else None))
    return networks, losses


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Bit for bit the same parameters and statistics."""
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
