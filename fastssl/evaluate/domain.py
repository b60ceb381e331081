"""How well a linear classifier tells synthetic from real by the adapted layer's features: chance is 0.5."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.errors import DataError
from fastssl.evaluate.features import pooled_features
from fastssl.evaluate.results import keep_results
from fastssl.evaluate.subject import Subject, run_subject
from fastssl.loader import Domain

log = logging.getLogger(__name__)

_L2 = 1e-2
_STEPS = 200
_FEW = 20
"""Images of a domain below which its accuracy says little."""


def evaluate_domain(run: Path, synthetic: str | PathLike[str], real: str | PathLike[str]) -> dict[str, object]:
    """Fit a logistic classifier on the training images' features and score it on held-out ones.

    Writes `domain.accuracy.{trained,untrained}` into the run's summary: the mean of both domains' accuracies.

    Args:
        run: the run folder; its settings name the training datasets.
        synthetic: packed held-out renders, a folder or an address.
        real: packed held-out photos, a folder or an address.

    Raises:
        DataError: a dataset is missing or of the wrong domain, or the training data are not those of the run.
        UsageError: the run has no real dataset to fit the classifier on.
    """
    trained = run_subject(run)
    held_out = [trained.domain("synthetic", synthetic), trained.domain("real", real)]
    fit = [trained.training_domain("synthetic"), trained.training_domain("real")]
    _warn_of_little_data(held_out, fit)
    accuracy = {
        subject.name: domain_accuracy(_two_domains(subject, fit), _two_domains(subject, held_out))
        for subject in (trained, trained.untrained())
    }
    values: dict[str, object] = {"layer": trained.layer, "accuracy": accuracy}
    keep_results(run, {"domain": values})
    return values


def _warn_of_little_data(held_out: list[Domain], fit: list[Domain]) -> None:
    for domain, seen in zip(held_out, fit, strict=True):
        images = domain.samples
        if len(images) < _FEW:
            log.warning("%s has %d images, so one of them decides 1/%d of its domain's accuracy",
                        images.path, len(images), len(images))  # fmt: skip
        if domain.fingerprint == seen.fingerprint:
            log.warning("%s is what the run was trained on, and not held out", images.path)


def domain_accuracy(fit: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """Balanced held-out accuracy of a logistic classifier with a ridge penalty.

    Args:
        fit: features (N, C) and domains (N,) of 0 and 1, to fit on.
        held_out: the same, to score on.

    Raises:
        DataError: one of them has images of one domain only, so that there is nothing to tell apart.
    """
    for name, (_, domains) in (("training", fit), ("held-out", held_out)):
        if len(domains.unique()) != 2:
            raise DataError(f"the {name} images are of one domain only", expected="images of both")
    features, domains = fit
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    weight, bias = fit_logistic((features - mean) / deviation, domains)
    features, domains = held_out
    right = (((features - mean) / deviation) @ weight + bias > 0) == (domains > 0)
    return float((right[domains == 0].double().mean() + right[domains == 1].double().mean()) / 2)


def fit_logistic(features: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (C,) and bias of the classifier with the least mean log loss plus half `_L2` times the squared weights.

    Both domains have the same say, however many samples they have. The problem is convex, so the answer is the one
    minimum and needs no seed.
    """
    x, y = features.double(), domains.double()
    fraction = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(x @ weight + bias, y, weight=fraction)
        loss = loss + 0.5 * _L2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return weight.detach().float(), bias.detach().float()


def _two_domains(subject: Subject, domains: list[Domain]) -> tuple[Tensor, Tensor]:
    parts = [pooled_features(subject, images) for images in domains]
    numbers = [torch.full((len(part),), number) for number, part in enumerate(parts)]
    return torch.cat(parts), torch.cat(numbers)
