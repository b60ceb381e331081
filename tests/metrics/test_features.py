"""k-NN against NumPy's own votes, and RankMe against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastssl.metrics import features, knn_accuracy, rank_me


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_orthonormal_directions(rank: int) -> None:
    """Of r equal singular values the entropy is log r."""
    left, right = torch.linalg.qr(normal(0, 40, rank)).Q, torch.linalg.qr(normal(1, 8, rank)).Q
    assert rank_me(7 * left @ right.T) == pytest.approx(rank, rel=1e-4)


def test_the_effective_rank_against_numpy() -> None:
    x = normal(2, 30, 12) * torch.logspace(0, -3, 12)
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    fractions = values / values.sum() + 1e-7
    assert rank_me(x) == pytest.approx(np.exp(-(fractions * np.log(fractions)).sum()), rel=1e-9)
    assert rank_me(torch.zeros(4, 3)) is None


def test_of_many_images_as_many_as_in_the_paper_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_RANKED", 10)
    x = normal(3, 19, 4)
    assert rank_me(x) == rank_me(x[::2])


def test_neighbours_vote_as_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_QUERIES", 16)
    x, classes = normal(4, 70, 5), torch.randint(4, (70,), generator=torch.Generator().manual_seed(5)) * 10
    x[:, 0] += classes / 10
    classes[::9] = -1
    known, labels = x[classes >= 0].double().numpy(), classes[classes >= 0].numpy()
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    right = []
    for query, direction in enumerate(known):
        cosine = known @ direction
        cosine[query] = -2
        near = np.argsort(-cosine)[:20]
        votes = {name: np.exp(cosine[near][labels[near] == name] / 0.07).sum() for name in np.unique(labels)}
        right.append(max(votes, key=lambda name: votes[name]) == labels[query])
    called = []
    assert knn_accuracy(x, classes, lambda: called.append(1)) == pytest.approx(np.mean(right))
    assert 0.3 < np.mean(right) < 0.99
    assert len(called) == 4


def test_few_and_unlabelled_photos() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert knn_accuracy(x, torch.tensor([3, 3, -1])) == 1
    assert knn_accuracy(x, torch.tensor([3, -1, -1])) is None
    assert knn_accuracy(torch.zeros(3, 2), torch.tensor([1, 2, 3])) == 0
