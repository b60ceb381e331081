"""Constants, classifier and retrieval against closed forms and plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import assert_numbers_of_the_cpu
from made_run import make_run

from fastssl.batch import PLANES
from fastssl.errors import DataError
from fastssl.evaluate.domain import domain_accuracy, fit_logistic
from fastssl.evaluate.neighbours import neighbours, precision_at
from fastssl.evaluate.subject import every_sample, run_subject
from fastssl.evaluate.tasks import fit_constant, measure
from fastssl.loader import evaluation_domain
from fastssl.methods import load_config


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_constants_are_the_best_constants(coded_synthetic: Path) -> None:
    """Against NumPy over the whole dataset; and no other depth has a smaller RMSE, no other normal a smaller error."""
    config = load_config("tiny", overrides=["data.size=67", f"data.synthetic={coded_synthetic}"])
    images = evaluation_domain("synthetic", coded_synthetic, config, PLANES)
    batches = list(every_sample(images))
    valid = torch.cat([batch.valid for batch in batches])[:, 0].numpy()
    depth = torch.cat([batch.depth for batch in batches])[:, 0].numpy()[valid].astype(np.float64)
    normals = torch.cat([batch.normal for batch in batches]).permute(0, 2, 3, 1).numpy()[valid].astype(np.float64)
    predictor = fit_constant(iter(batches))
    predicted = predictor(batches[0])
    assert predicted["depth"].unique().tolist() == pytest.approx([depth.mean()])
    mean = normals.mean(axis=0)
    assert predicted["normal"][0, :, 0, 0].tolist() == pytest.approx((mean / np.linalg.norm(mean)).tolist())
    assert measure(predictor, images, PLANES)["depth"].result()["rmse"] == pytest.approx(depth.std(), rel=1e-6)


def test_logistic_fit_is_the_minimum() -> None:
    """The gradient, written out in NumPy, vanishes; with unequal numbers per domain."""
    x = np.concatenate([normal(0, 30, 4).numpy(), normal(1, 90, 4).numpy() + 0.8]).astype(np.float64)
    y = np.repeat([0.0, 1.0], [30, 90])
    weight, bias = (part.double().numpy() for part in fit_logistic(torch.from_numpy(x), torch.from_numpy(y)))
    fraction = np.where(y > 0, 0.5 / 0.75, 0.5 / 0.25)
    residual = fraction * (1 / (1 + np.exp(-(x @ weight + bias))) - y)
    assert np.abs(residual @ x / 120 + 0.01 * weight).max() < 1e-6
    assert abs(residual.mean()) < 1e-6


def test_domain_accuracy_of_equal_and_of_separate_domains() -> None:
    domains = torch.arange(400) % 2
    held_out = normal(3, 400, 5)
    assert domain_accuracy((normal(2, 400, 5), domains), (held_out, domains)) == pytest.approx(0.5, abs=0.08)
    apart = domains[:, None] * torch.tensor([8.0, 0, 0, 0, 0])
    assert domain_accuracy((normal(2, 400, 5) + apart, domains), (held_out + apart, domains)) > 0.99
    # Balanced: nine in ten of one domain, all called that domain, is no better than chance.
    lopsided = (torch.arange(400) % 10 > 0).long()
    assert domain_accuracy((torch.zeros(400, 2), lopsided), (torch.zeros(400, 2), lopsided)) == pytest.approx(0.5)


def test_neighbours_against_numpy() -> None:
    features = normal(4, 20, 6)
    order = neighbours(features).numpy()
    x = features.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for query in range(20):
        others = sorted(set(range(20)) - {query}, key=lambda other: -x[query] @ x[other])
        assert order[query].tolist() == others
    labels = torch.arange(20) // 4
    same = [[labels[other] == labels[query] for other in order[query][:5]] for query in range(20)]
    assert precision_at(5, torch.from_numpy(order), labels) == pytest.approx(np.mean(same))
    assert precision_at(1, neighbours(torch.eye(5).repeat_interleave(4, 0) + 1e-3 * features[:, :5]), labels) == 1


def test_precision_needs_as_many_neighbours() -> None:
    """Six photos of two classes on a line: 0 0 0 1 1 1. By hand; with one photo less, 5 neighbours do not exist."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    angles = torch.deg2rad(torch.tensor([0.0, 1, 3, 40, 41, 43]))
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert precision_at(1, neighbours(features), labels) == 1
    assert precision_at(5, neighbours(features), labels) == pytest.approx(2 / 5)  # all others: two of five are right
    assert precision_at(5, neighbours(features[:5]), labels[:5]) is None
    assert precision_at(1, neighbours(features[:2]), labels[:2]) == 1
    assert precision_at(1, neighbours(features[2:4]), labels[2:4]) == 0


def test_a_domain_without_images_is_refused() -> None:
    both, one = (normal(0, 6, 3), torch.arange(6) % 2), (normal(1, 6, 3), torch.zeros(6))
    with pytest.raises(DataError, match="training images are of one domain"):
        domain_accuracy(one, both)
    with pytest.raises(DataError, match="held-out images are of one domain"):
        domain_accuracy(both, one)


def test_untrained_networks_have_the_statistics_of_the_training_images(coded_synthetic: Path, tmp_path: Path) -> None:
    """The first layer's statistics are those of all the training images together."""
    subject = run_subject(make_run(tmp_path / "run", coded_synthetic, None, "model.adapted_layer=none"))
    backbone = subject.untrained().backbone
    norm = backbone.layers["conv1"].norm
    with torch.no_grad():
        images = torch.cat([batch.image for batch in every_sample(subject.training_domain("synthetic"))])
        convolved = backbone.layers["conv1"].conv(images)
    assert torch.allclose(norm.running_mean, convolved.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, convolved.var(dim=(0, 2, 3)), rtol=1e-3, atol=1e-7)


def test_an_evaluation_made_again_has_the_same_numbers(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_numbers_of_the_cpu(coded_synthetic, coded_real, tmp_path, monkeypatch, torch.device("cpu"))
