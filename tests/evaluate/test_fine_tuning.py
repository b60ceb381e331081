"""Training by an evaluation: each step beside NumPy, and kills that cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import DataError
from fastssl.evaluate import fine_tuning
from fastssl.evaluate.fine_tuning import Training
from fastssl.evaluate.progress import Progress


def halves(step: int) -> float:
    return 0.5 ** (step // 2)


def numbers(step: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32))


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_steps_are_those_of_sgd(clip_norm: float | None) -> None:
    """The mean of (x . w)^2: SGD with momentum and decay by hand, in float64."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1, bias=False)
    weight = network.weight.detach().numpy().astype(np.float64)[0]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    training = Training(steps=5, lr_factor=halves, seed=0, clip_norm=clip_norm)
    training.run(network, optimizer, lambda step: network(numbers(step)).square().mean(), Progress(None), "one", "")
    momentum = np.zeros(3)
    for step in range(5):
        x = numbers(step).numpy().astype(np.float64)
        gradient = 2 * x.T @ (x @ weight) / len(x)
        if clip_norm is not None:
            gradient *= min(1, clip_norm / np.linalg.norm(gradient))
        momentum = 0.9 * momentum + gradient + 0.01 * weight
        weight = weight - 0.1 * 0.5 ** (step // 2) * momentum
    np.testing.assert_allclose(network.weight.detach().numpy()[0], weight, rtol=1e-5, atol=1e-6)


def trained(progress: Progress, loss_of: Callable[[nn.Module, int], Tensor], key: str = "", seed: int = 3) -> Tensor:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    Training(steps=6, lr_factor=halves, seed=seed).run(
        network, optimizer, lambda step: loss_of(network, step), progress, "one", key
    )
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def squares(network: nn.Module, step: int) -> Tensor:
    loss: Tensor = network(numbers(step)).square().mean()
    return loss


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def dies(network: nn.Module, step: int) -> Tensor:
        if step == 4 and not made.count(4):
            made.append(step)
            raise KeyboardInterrupt
        made.append(step)
        return squares(network, step)

    monkeypatch.setattr(fine_tuning, "_KEEP_EVERY_S", 0)
    whole = trained(Progress(None), squares)
    assert not torch.equal(whole, trained(Progress(None), squares, seed=4)), "dropout does not draw by the seed"
    with pytest.raises(KeyboardInterrupt):
        trained(Progress(tmp_path / "learnt.pt"), dies)
    assert torch.equal(trained(Progress(tmp_path / "learnt.pt"), dies), whole)
    assert made == [0, 1, 2, 3, 4, 4, 5]
    trained(Progress(tmp_path / "learnt.pt"), dies)
    assert made[7:] == [], "a training that is done is not made again"
    trained(Progress(tmp_path / "learnt.pt"), dies, key="other data")
    assert made[7:] == list(range(6))


def test_a_loss_that_is_not_finite_is_named() -> None:
    with pytest.raises(DataError, match=r"not finite(.|\n)*one, step 3(.|\n)*nan(.|\n)*lower the learning rate"):
        trained(Progress(None), lambda network, step: squares(network, step) * (float("nan") if step == 2 else 1))
