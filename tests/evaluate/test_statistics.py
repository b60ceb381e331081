"""Re-estimated statistics of batch norms against NumPy's moments of what the norms are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import measured
from made_run import make_run
from torch import Tensor, nn

from fastssl.evaluate import (
    DomainAccuracy,
    Matching,
    Neighbours,
    Subject,
    Tasks,
    domain,
    evaluate,
    run_subject,
    subject,
)
from fastssl.evaluate.features import pooled_features
from fastssl.evaluate.subject import every_sample
from fastssl.loader import Domain

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
ALONE = "model.adapted_layer=none"


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real)


def norms(networks: nn.Module) -> dict[str, nn.BatchNorm2d]:
    found = {name: one for name, one in networks.named_modules() if isinstance(one, nn.BatchNorm2d)}
    return {name: one for name, one in found.items() if one.track_running_stats}


def inputs_of_norms(one: Subject, forward: Callable[[Tensor], object], images: Domain) -> dict[str, np.ndarray]:
    """What each norm is given over all images, (values, C)."""
    given: dict[str, list[np.ndarray]] = {}
    hooks = [
        norm.register_forward_pre_hook(
            lambda _, inputs, name=name: given.setdefault(name, []).append(
                inputs[0].permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
            )
        )
        for name, norm in norms(one.networks).items()
    ]
    with torch.no_grad():
        for batch in every_sample(images):
            forward(batch.image)
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in given.items()}


def assert_moments(norm: nn.BatchNorm2d, given: np.ndarray) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = given.std(axis=0).max()
    assert norm.running_mean.numpy() == pytest.approx(given.mean(axis=0), abs=1e-6 * scale)
    assert norm.running_var.numpy() == pytest.approx(given.var(axis=0, ddof=1), rel=1e-5)


def test_all_norms_have_the_moments_of_what_they_are_given(run: Path, coded_synthetic: Path) -> None:
    """Of backbone and heads, since all images are one batch; the subject's own networks stay as they were."""
    trained = run_subject(run)
    before = {name: value.clone() for name, value in trained.networks.state_dict().items()}
    images = trained.domain("synthetic", coded_synthetic)
    again, same = trained.reestimated(images), trained.reestimated(images)
    assert again is not None
    assert same is not None
    assert again.predict is not None
    assert again.name == "trained_reestimated"
    given = inputs_of_norms(again, again.predict, images)
    assert len(given) == len(norms(again.networks)) > 10
    for name, norm in norms(again.networks).items():
        assert_moments(norm, given[name])
    assert all(torch.equal(value, before[name]) for name, value in trained.networks.state_dict().items())
    assert all(
        torch.equal(value, again.networks.state_dict()[name]) for name, value in same.networks.state_dict().items()
    )
    assert not any(module.training for module in again.networks.modules())


@pytest.mark.parametrize(("batches", "images"), [(128, 120), (1, 32)])
def test_batches_count_by_their_images_up_to_a_bound(
    run: Path, monkeypatch: pytest.MonkeyPatch, batches: int, images: int
) -> None:
    """Photos in batches of 32, 32, 32 and 24: the first norm has the moments of all, not the mean of the batches'."""
    monkeypatch.setattr(subject, "_STATISTICS_BATCHES", batches)
    trained = run_subject(run)
    photos = trained.domain("real", SAMPLE / "retrieval")
    again = trained.reestimated(photos, until="conv2")
    assert again is not None
    (first, *others) = norms(again.backbone).values()
    given = inputs_of_norms(again, lambda image: again.backbone(image, until="conv1"), photos)[
        "backbone.layers.conv1.norm"
    ]
    assert_moments(first, given[: len(given) * images // 120])
    assert again.statistics == f"re-estimated on {images} images of real data"
    old = list(norms(trained.backbone).values())
    assert not torch.equal(others[0].running_mean, old[1].running_mean)
    assert torch.equal(others[1].running_mean, old[2].running_mean)  # of conv3, which is not looked at


def test_frozen_layers_keep_theirs_and_where_all_are_frozen_there_is_no_column(
    tmp_path: Path, coded_synthetic: Path, coded_real: Path
) -> None:
    run = make_run(tmp_path / "some", coded_synthetic, coded_real, ALONE, "model.frozen=conv2")
    trained = run_subject(run)
    again = trained.reestimated(trained.domain("real", coded_real), until="conv5")
    assert again is not None
    pairs = zip(norms(trained.backbone).values(), norms(again.backbone).values(), strict=True)
    same = [torch.equal(old.running_mean, new.running_mean) for old, new in pairs]
    assert same == [True, True, False, False, False, True, True]
    frozen = make_run(tmp_path / "all", coded_synthetic, coded_real, ALONE, "model.frozen=fc7")
    for evaluation in (
        Neighbours(real=coded_real),
        Matching(real=coded_real),
        DomainAccuracy(synthetic=coded_synthetic, real=coded_real),
    ):
        found = evaluate(evaluation, frozen)
        assert "trained_reestimated" not in found.rows[0].values
        told = found.conditions["statistics"]
        assert isinstance(told, dict)
        assert told["no_trained_reestimated"].startswith(
            "no batch norm that is measured has statistics that may change"
        )
    # The heads are not frozen.
    assert "trained_reestimated" in measured(Tasks(synthetic=coded_synthetic), frozen)["depth"]["rmse"]


def test_each_domain_is_seen_through_its_own_statistics(
    run: Path, coded_synthetic: Path, coded_real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spied(one: Subject, images: Domain) -> Tensor:
        if one.name == "trained_reestimated":
            seen.append((images.name, one.statistics))
        return pooled_features(one, images)

    monkeypatch.setattr(domain, "pooled_features", spied)
    found = evaluate(DomainAccuracy(synthetic=coded_synthetic, real=coded_real), run)
    rooms, photos = "re-estimated on 11 images of synthetic data", "re-estimated on 9 images of real data"
    assert seen == [("synthetic", rooms), ("real", photos)] * 2
    told = found.conditions["statistics"]
    assert isinstance(told, dict)
    assert list(told) == ["trained", "trained_reestimated", "untrained"]
    assert told["trained_reestimated"] == f"{rooms}; {photos}"
