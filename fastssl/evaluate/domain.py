"""Accuracy of a linear classifier that tells synthetic from real by a layer's features: chance is 0.5."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.addresses import masked
from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.evaluate.evaluation import Dataset, Measured, Metric, Row, Sheet
from fastssl.evaluate.features import pooled_features
from fastssl.evaluate.subject import Subject, statistics_of
from fastssl.loader import Domain
from fastssl.metrics import balanced_interval
from fastssl.shards import DomainName

log = logging.getLogger(__name__)

_L2 = 1e-2
_STEPS = 200
_FEW = 20
"""Images of a domain below which its accuracy says little."""


@dataclass(frozen=True, kw_only=True)
class DomainAccuracy:
    """Accuracy of a linear classifier that tells synthetic from real by the compared layer's features."""

    name: ClassVar[str] = "domain"
    title: ClassVar[str] = "Telling rendered from real"
    note: ClassVar[str] = (
        "A linear classifier is fitted on features of some images, of the training's unless others are named below, to "
        "tell rendered images from photos. Its accuracy on the held-out images is the mean of the accuracies of both. "
        "Chance is 0.5: there the features no longer show where an image comes from. At 1 they always do. Trained "
        "reestimated sees each domain through batch norms with the statistics of that domain's images."
    )
    sheet: ClassVar[Sheet | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            path=("accuracy",),
            name="Accuracy of a linear domain classifier",
            key="Domain accuracy",
            better="near 0.5",
        ),
    )

    synthetic: Annotated[Dataset, "Packed dataset of held-out rendered images: a folder or an address."]
    real: Annotated[Dataset, "Packed dataset of held-out photos: a folder or an address."]
    fit_synthetic: Annotated[Dataset | None, "Rendered images to fit the classifier on; the run's if not given."] = None
    fit_real: Annotated[Dataset | None, "Photos to fit the classifier on; the run's if not given."] = None

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any features have a domain to tell."""
        return ""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Fit a logistic classifier on the training images' pooled features, and score it on held-out ones.

        With re-estimated statistics each domain is seen through batch norms of its own: those of the images of that
        domain that the classifier is fitted on, for these and for the held-out ones. So means and variances of the
        domains no longer tell them apart, as they do not for a discriminator that sees batches of one domain; what the
        classifier still finds is another difference.

        Raises:
            DataError: a dataset is missing or of the wrong domain, or the training data are not those of the run.
            UsageError: the run names no dataset of a domain, and none is given to fit the classifier on.
        """
        held_out = [subject.domain("synthetic", self.synthetic), subject.domain("real", self.real)]
        fit = self._fitted_on(subject)
        _warn_of_little_data(held_out, fit)
        again = [subject.reestimated(images, until=subject.layer) for images in fit]
        pairs = [(one, one) for one in (subject, *beside, *subject.baselines())]
        if again[0] and again[1]:
            pairs.insert(1, (again[0], again[1]))
        right = {pair[0].name: right_of_each(_two_domains(pair, fit), _two_domains(pair, held_out)) for pair in pairs}
        (metric,) = self.metrics
        accuracy = {name: balanced_accuracy(found) for name, found in right.items()}
        intervals = {name: balanced_interval(*map(_counted, found)) for name, found in right.items()}
        conditions = {
            "layer": subject.layer,
            "synthetic": masked(str(self.synthetic)),
            "real": masked(str(self.real)),
            "images": sum(len(domain.samples) for domain in held_out),
            "fitted_on_synthetic": masked(fit[0].samples.path),
            "fitted_on_real": masked(fit[1].samples.path),
            "statistics": statistics_of(subject, [_told_together(*pair) for pair in pairs]),
            "intervals": "95 %, Wilson's of each domain put together, as if all held-out images were independent",
        }
        return Measured(rows=[Row(metric, accuracy, intervals)], conditions=conditions)

    def _fitted_on(self, subject: Subject) -> list[Domain]:
        given: dict[DomainName, Dataset | None] = {"synthetic": self.fit_synthetic, "real": self.fit_real}
        return [
            subject.training_domain(name) if dataset is None else subject.domain(name, dataset)
            for name, dataset in given.items()
        ]


def _warn_of_little_data(held_out: list[Domain], fit: list[Domain]) -> None:
    for domain, seen in zip(held_out, fit, strict=True):
        images = domain.samples
        if len(images) < _FEW:
            log.warning("%s has %d images, so one of them decides 1/%d of its domain's accuracy",
                        images.path, len(images), len(images))  # fmt: skip
        if domain.fingerprint == seen.fingerprint:
            log.warning("%s is what the classifier is fitted on, and not held out", images.path)


def domain_accuracy(fit: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """Balanced held-out accuracy of a logistic classifier with a ridge penalty; takes and raises as `right_of_each`."""
    return balanced_accuracy(right_of_each(fit, held_out))


def balanced_accuracy(right: tuple[Tensor, Tensor]) -> float:
    """The mean of both domains' accuracies."""
    return sum(float(of_domain.double().mean()) for of_domain in right) / 2


def right_of_each(fit: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Held-out images of each domain that a logistic classifier with a ridge penalty tells rightly.

    Args:
        fit: features (N, C) and domains (N,) of 0 and 1, to fit on.
        held_out: the same, to score on.

    Returns:
        Of the images of domain 0, and of domain 1, bool.

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
    return right[domains == 0], right[domains == 1]


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


def _counted(right: Tensor) -> tuple[int, int]:
    return int(right.sum()), len(right)


def _told_together(first: Subject, second: Subject) -> Subject:
    """A subject that is another one for each domain, with the statistics of both in its words."""
    return first if first is second else replace(first, statistics=f"{first.statistics}; {second.statistics}")


def _two_domains(subjects: tuple[Subject, Subject], domains: list[Domain]) -> tuple[Tensor, Tensor]:
    """Features of both domains, each as its subject sees it, and the domains' numbers."""
    parts = [pooled_features(one, one.sees(images)) for one, images in zip(subjects, domains, strict=True)]
    numbers = [torch.full((len(part),), number) for number, part in enumerate(parts)]
    return torch.cat(parts), torch.cat(numbers)
