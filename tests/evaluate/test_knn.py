"""Classes by nearest neighbours, against a direct sum in NumPy over all images at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import make_run
from numpy.typing import NDArray
from patterns import CodedSource

from fastssl.batch import Record
from fastssl.errors import ConfigError, DataError
from fastssl.evaluate import NearestClasses, evaluate, run_subject
from fastssl.evaluate import knn as knn_module
from fastssl.evaluate.knn import class_ranks, nearest
from fastssl.shards import pack


def features(count: int, seed: int, channels: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32))


def classes(count: int, seed: int, num: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(num, size=count))


def direct_votes(bank: NDArray[np.float32], bank_classes: NDArray[np.int64], query: NDArray[np.float32], k: int,
                 num: int) -> NDArray[np.float64]:  # fmt: skip
    """The votes for every class, one neighbour after another."""
    cosine = bank.astype(float) @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
    votes = np.zeros(num)
    for voter in np.argsort(-cosine, kind="stable")[:k]:
        votes[bank_classes[voter]] += np.exp(cosine[voter] / 0.07)
    return votes


def test_ranks_are_those_of_a_direct_sum() -> None:
    num = 9
    bank, bank_classes = features(260, 0), classes(260, 1, num)
    queries, right = features(70, 2), classes(70, 3, num)
    found = class_ranks(bank, bank_classes, queries, right, num)
    for k in (1, 20, 200):
        for number in range(len(queries)):
            votes = direct_votes(bank.numpy(), bank_classes.numpy(), queries[number].numpy(), k, num)
            own = votes[right[number]]
            assert found[k][number] == (num if own == 0 else (votes > own).sum())
    assert (found[1] == 0).sum() < (found[20] < 5).sum()


def test_all_vote_where_there_are_fewer_than_neighbours() -> None:
    bank, bank_classes = features(7, 0), classes(7, 1, 3)
    found = class_ranks(bank, bank_classes, features(5, 2), classes(5, 3, 3), 3)
    assert torch.equal(found[20], found[200])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even which of equal ones is taken: products of small whole numbers are exact, and many are equal."""
    bank, queries = features(270, 0).round(), features(40, 1).round()
    expected = np.argsort(-(queries @ bank.T).numpy(), axis=1, kind="stable")[:, :25]
    for at_once in (1, 7, 64, 270, 1000):
        cosines, found = nearest(bank, queries, 25, at_once=at_once)
        assert (found.numpy() == expected).all()
        assert torch.equal(cosines, (queries @ bank.T).gather(1, found))
    assert (cosines.diff(dim=1) == 0).any(dim=1).all()
    whole = class_ranks(features(270, 0), classes(270, 2, 8), features(40, 1), classes(40, 3, 8), 8)
    monkeypatch.setattr(knn_module, "_QUERIES", 3)
    some = class_ranks(features(270, 0), classes(270, 2, 8), features(40, 1), classes(40, 3, 8), 8)
    assert all(torch.equal(some[k], whole[k]) for k in whole)


def test_memory_does_not_grow_with_images_times_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of votes is as large for many images and classes as it may be."""
    sizes, votes_of = list[int](), knn_module.class_votes

    def noted(near: torch.Tensor, voted: torch.Tensor, num_classes: int) -> torch.Tensor:
        votes = votes_of(near, voted, num_classes)
        sizes.append(votes.numel())
        return votes

    monkeypatch.setattr(knn_module, "_SCORES", 4000)
    monkeypatch.setattr(knn_module, "class_votes", noted)
    for images, num in ((300, 50), (600, 100), (1200, 1000)):
        class_ranks(features(50, 0), classes(50, 1, num), features(images, 2), classes(images, 3, num), num)
    assert max(sizes) <= 4000
    assert len(sizes) > 3 * 1200 / 4  # so there were many small ones


@dataclass(frozen=True)
class Coloured(CodedSource):
    """Patterns of chosen classes; -1 = none."""

    of: tuple[int, ...] = ()

    def references(self) -> Iterator[str]:
        return (str(number) for number in range(len(self.of)))

    def read(self, reference: str) -> Record:
        record = super().read(reference)
        number = self.of[int(reference)]
        return Record(key=record.key, image=record.image, class_index=None if number < 0 else number)


def packed(out: Path, *of: int) -> Path:
    pack(Coloured(len(of), "real", of=of), out, size=128)
    return out


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real)


def test_classes_that_do_not_fit_are_refused(run: Path, tmp_path: Path) -> None:
    train = packed(tmp_path / "train", 3, 3, 5, 5)
    other = packed(tmp_path / "other", 3, 5, 4)
    with pytest.raises(DataError, match=r"classes that no training image has(.|\n)*1 of them: 4") as found:
        evaluate(NearestClasses(train=train, test=other), run)
    assert found.value.exit_code == 3
    without = packed(tmp_path / "without", 3, -1, 5)
    for one, two in ((train, without), (without, train)):
        with pytest.raises(DataError, match=r"images have no classes(.|\n)*1 of 3 images"):
            evaluate(NearestClasses(train=one, test=two), run)
    with pytest.raises(DataError, match="all training images have the same class"):
        evaluate(NearestClasses(train=packed(tmp_path / "same", 3, 3), test=train), run)
    with pytest.raises(ConfigError, match=r"no such layer(.|\n)*conv9(.|\n)*conv1"):
        evaluate(NearestClasses(train=train, test=train, layer="conv9"), run)


def test_gaps_between_classes_do_not_matter_and_any_layer_is_compared(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = packed(tmp_path / "train", 3, 900, 7, 3), packed(tmp_path / "test", 3, 900)
    section = evaluate(NearestClasses(train=train, test=test, layer="conv1"), run).section()
    assert section["k_1"]["top_1"]["trained"] == 1  # the same patterns
    assert section["conditions"]["layer"] == "conv1"
    assert section["conditions"]["classes"] == 3
    assert "only 4 training images: all vote where 200 neighbours would" in caplog.text
    assert run_subject(run).layer == "conv5"
