"""Linear probes: the protocol's numbers, its resizing as a direct sum, and what probes can and cannot learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_run import make_run
from numpy.typing import NDArray
from patterns import CodedSource

from fastssl.batch import Record
from fastssl.errors import DataError, UsageError
from fastssl.evaluate import Linear, evaluate
from fastssl.evaluate.linear import PROGRESS
from fastssl.evaluate.probes import Norm, Probes, side_of, tent_matrix
from fastssl.shards import pack

IMAGENET = 1_281_167
"""Training images of ImageNet."""


def test_the_defaults_are_those_of_the_protocol() -> None:
    """140,000 steps of 256 images, which are 28 epochs; the rate, 0.01, drops to a tenth every 40,000 steps."""
    schedule = Linear(train="train", test="test").schedule
    steps = len(schedule.batches(IMAGENET, 0, 0))
    assert schedule.batch_size == 256
    assert schedule.epochs == 28
    assert steps * schedule.epochs == pytest.approx(140_000, rel=2e-3)
    assert steps * schedule.drop_every == pytest.approx(40_000, rel=2e-3)
    rates = [schedule.lr_of(epoch) for epoch in range(28)]
    assert rates == pytest.approx([1e-2] * 8 + [1e-3] * 8 + [1e-4] * 8 + [1e-5] * 4)
    assert (schedule.momentum, schedule.weight_decay) == (0.9, 5e-4)
    table = {96: (55, 10, 9600), 256: (27, 6, 9216), 384: (13, 5, 9600)}
    for channels, (side, resized, dimensions) in table.items():
        assert side_of(channels, side) == resized
        assert channels * resized**2 == dimensions
    assert side_of(256, 13) == 6
    assert side_of(8, 13) == 13


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    probes = Probes({"conv1": (2, 1, 1)}, 2, Linear(train="", test="").schedule)
    x, classes = torch.tensor([[1.0, 0], [0, 1], [1, 1]])[:, :, None, None], torch.tensor([0, 1, 1])
    probes.learn({"conv1": x}, classes, epoch=8)
    linear: Any = probes.linear["conv1"]
    normed = (x[:, :, 0, 0] - x[:, :, 0, 0].mean(0)) / (x[:, :, 0, 0].var(0, correction=0) + 1e-5).sqrt()
    gradient = 0.5 - torch.nn.functional.one_hot(classes).float()
    torch.testing.assert_close(linear.weight.detach(), -1e-3 * gradient.T @ normed / 3)
    torch.testing.assert_close(linear.bias.detach(), -2e-3 * gradient.mean(0))
    assert [group["weight_decay"] for group in probes.state()["optimizer"]["param_groups"]] == [5e-4, 0]


def direct_resize(row: NDArray[np.float64], out: int) -> NDArray[np.float64]:
    """Value by value: a tent over the repeated ends, and then between the two nearest."""
    radius = (len(row) - 1) / (out - 1)
    smooth = row.copy()
    if radius > 1:
        for middle in range(len(row)):
            total = weights = 0.0
            for offset in range(-20, 21):
                weight = max(0.0, radius - abs(offset))
                total += weight * row[min(max(middle + offset, 0), len(row) - 1)]
                weights += weight
            smooth[middle] = total / weights
    return np.interp(np.arange(out) * radius, np.arange(len(row)), smooth)


@pytest.mark.parametrize(("length", "out"), [(55, 10), (27, 6), (13, 5), (13, 6), (13, 12), (13, 13), (7, 2)])
def test_maps_are_resized_by_a_tent(length: int, out: int) -> None:
    row = np.random.default_rng(0).normal(size=length)
    matrix = tent_matrix(length, out)
    assert matrix.shape == (out, length)
    assert matrix.double().numpy() @ row == pytest.approx(direct_resize(row, out), abs=1e-6)


def test_a_single_number_is_the_mean() -> None:
    assert tent_matrix(4, 1).tolist() == [[0.25] * 4]
    assert tent_matrix(1, 1).tolist() == [[1.0]]


def test_a_norm_keeps_means_that_begin_without_a_bias() -> None:
    """Of batches that are alike it is the batch norm of one, after two batches as after a thousand."""
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 5 + 2
    norm, expected = Norm(3), torch.nn.BatchNorm2d(3, affine=False, momentum=1.0)
    for _ in range(2):
        torch.testing.assert_close(norm(x), expected(x))
    torch.testing.assert_close(norm.eval()(x), expected.eval()(x))
    norm.train()(x + 1)
    seen = (0.999**2 + 0.999) * x.mean((0, 2, 3)) + (x + 1).mean((0, 2, 3))
    torch.testing.assert_close(norm.mean / norm.weight, seen / (0.999**2 + 0.999 + 1))


@dataclass(frozen=True)
class Textures(CodedSource):
    """Stripes of four directions, a class each, of random width, place and contrast; or classes of no meaning."""

    seed: int = 0
    random_classes: bool = False

    def references(self) -> Iterator[str]:
        return (str(number) for number in range(self.count))

    def read(self, reference: str) -> Record:
        number = int(reference)
        draw = np.random.default_rng([self.seed, number])
        y, x = np.mgrid[:72, :72]
        kind = number % 4
        along = x * math.cos(kind * math.pi / 4) + y * math.sin(kind * math.pi / 4)
        stripes = np.sin(along * draw.uniform(0.5, 0.7) + draw.uniform(0, 6)) * draw.uniform(60, 100) + 128
        image = np.repeat((stripes + draw.normal(0, 8, stripes.shape))[:, :, None], 3, axis=2)
        shown = np.clip(image, 0, 255).astype(np.uint8)
        told = int(draw.integers(4)) if self.random_classes else kind
        return Record(key=f"stripes_{number:03d}", image=shown, class_index=told)


def packed(out: Path, count: int, seed: int, *, random_classes: bool = False) -> Path:
    pack(Textures(count, "real", seed=seed, random_classes=random_classes), out, size=72)
    return out


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return packed(tmp_path / "train", 32, 0)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return packed(tmp_path / "test", 40, 1)


def test_probes_learn_textures_and_not_classes_without_a_meaning(run: Path, held_out: Path, tmp_path: Path) -> None:
    """Of 40 images at a chance of 0.25 a guess tells half of them 6 times in 10,000."""
    train = packed(tmp_path / "more", 96, 0)
    found = evaluate(Linear(train=train, test=held_out, batch_size=8, epochs=8), run).section()
    assert all(of_layer["top_1"]["trained"] > 0.9 for of_layer in found["layers"].values())
    assert found["top_1"] == found["layers"]["conv5"]["top_1"]
    assert found["top_5"]["trained"] == 1  # of four classes
    arbitrary = [packed(tmp_path / f"any_{seed}", 40, seed, random_classes=True) for seed in (2, 3)]
    control = evaluate(Linear(train=arbitrary[0], test=arbitrary[1], batch_size=8, epochs=8), run).section()
    assert all(of_layer["top_1"]["trained"] < 0.5 for of_layer in control["layers"].values())


def test_after_a_kill_it_goes_on_to_the_same_numbers(
    run: Path, train: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = Linear(train=train, test=held_out, batch_size=8, epochs=3)
    learn, steps = Probes.learn, list[int]()

    def counted(self: Probes, maps: Any, classes: Any, epoch: int) -> None:
        steps.append(epoch)
        if len(steps) == dies_at:
            raise KeyboardInterrupt
        learn(self, maps, classes, epoch)

    monkeypatch.setattr(Probes, "learn", counted)
    dies_at = 0
    undisturbed = evaluate(evaluation, run)
    assert steps == 3 * [epoch for epoch in range(3) for _ in range(4)]
    dies_at = 12 + 6  # in the second epoch of the second network
    steps.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, run)
    assert (run / PROGRESS).is_file()
    steps.clear()
    dies_at = 0
    again = evaluate(evaluation, run)
    assert steps == [1] * 4 + [2] * 4 + [0] * 4 + [1] * 4 + [2] * 4
    assert again.section() == undisturbed.section()
    assert not (run / PROGRESS).exists()


def test_another_training_does_not_go_on_from_what_is_left(
    run: Path, train: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Probes.learn

    def dies(self: Probes, maps: Any, classes: Any, epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        learn(self, maps, classes, epoch)

    expected = evaluate(Linear(train=train, test=held_out, batch_size=8, epochs=1, lr=0.1), run).section()
    with monkeypatch.context() as patched:
        patched.setattr(Probes, "learn", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate(Linear(train=train, test=held_out, batch_size=8, epochs=2), run)
    assert evaluate(Linear(train=train, test=held_out, batch_size=8, epochs=1, lr=0.1), run).section() == expected


def test_a_damaged_file_of_progress_is_named(run: Path, train: Path, held_out: Path) -> None:
    (run / PROGRESS).write_bytes(b"PK" + bytes(100))
    with pytest.raises(DataError, match=r"is damaged(.|\n)*linear_probes.pt(.|\n)*delete the file"):
        evaluate(Linear(train=train, test=held_out), run)


def test_features_that_do_not_fit_are_computed_anew(
    run: Path, train: Path, held_out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = evaluate(Linear(train=train, test=held_out, batch_size=8, epochs=2), run)
    assert "each epoch computes them anew" not in caplog.text
    anew = evaluate(Linear(train=train, test=held_out, batch_size=8, epochs=2, cache_gib=0), run)
    assert "each epoch computes them anew" in caplog.text
    assert anew.rows == kept.rows


def test_a_probe_that_diverges_has_no_accuracy(run: Path, train: Path, held_out: Path) -> None:
    """No comparison with a score that is not a number is true, so that no class would come before the right one."""
    with pytest.raises(UsageError, match=r"has diverged(.|\n)*--lr(.|\n)*conv1 of trained"):
        evaluate(Linear(train=train, test=held_out, epochs=1, lr=math.inf), run)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(UsageError, match=r"--batch-size(.|\n)*> 0"):
        Linear(train="train", test="test", batch_size=0)
    with pytest.raises(UsageError, match=r"--momentum(.|\n)*>= 0"):
        Linear(train="train", test="test", momentum=-0.1)
