"""Training and test images with classes, and how many classes were told rightly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.errors import DataError
from fastssl.evaluate.evaluation import Row
from fastssl.evaluate.subject import Subject
from fastssl.loader import Domain, check_class_numbers
from fastssl.metrics import Metric, wilson_interval

log = logging.getLogger(__name__)

TOPS = (1, 5)
"""Guesses among which the right class is looked for."""
INTERVALS = "95 %, Wilson's, as if all test images were independent"
_SHOWN = 5


class Labelled(NamedTuple):
    """Images of known classes, to learn from and to test on; classes are numbered from 0 without gaps."""

    train: Domain
    train_classes: Tensor
    """(N,) int64."""
    test: Domain
    test_classes: Tensor
    """(M,) int64."""
    num_classes: int


def open_labelled(subject: Subject, train: str | PathLike[str], test: str | PathLike[str]) -> Labelled:
    """Open photos with classes as a subject sees them.

    Raises:
        DataError: a dataset is missing or of rendered images, some images have no class, all have the same one, the
            test images have a class that no training image has, or a class has another number there.
    """
    learnt, tested = subject.domain("real", train), subject.domain("real", test)
    check_class_numbers(*learnt.samples.datasets, *tested.samples.datasets)
    names, train_classes = _classes(learnt).unique(return_inverse=True)
    found = _classes(tested)
    if len(names) < 2:
        raise DataError("all training images have the same class", where=learnt.samples.path, expected="2 or more")
    unknown = found[~torch.isin(found, names)].unique().tolist()
    if unknown:
        shown = ", ".join(map(str, unknown[:_SHOWN]))
        raise DataError(
            "test images have classes that no training image has",
            where=tested.samples.path,
            seen=f"{len(unknown)} of them: {shown}{', ...' if len(unknown) > _SHOWN else ''}",
            expected=f"some of the {len(names)} classes of {learnt.samples.path}",
            hint="pack both from the same folder of classes, which gives them one numbering",
        )
    if len(names) <= TOPS[-1]:
        log.warning("there are only %d classes, so the right one is among the first %d anyway", len(names), TOPS[-1])
    if learnt.fingerprint == tested.fingerprint:
        log.warning("%s is what is learnt from, and not held out", tested.samples.path)
    return Labelled(learnt, train_classes, tested, torch.searchsorted(names, found), len(names))


def _classes(domain: Domain) -> Tensor:
    """The class of each image: (N,) int64."""
    numbers = [dataset.class_index(n) for dataset in domain.samples.datasets for n in range(len(dataset))]
    classes = torch.tensor(numbers)
    lacking = int((classes < 0).sum())
    if lacking:
        raise DataError(
            "images have no classes",
            where=domain.samples.path,
            seen=f"{lacking} of {len(classes)} images",
            hint="pack them from a folder per class",
        )
    return classes


def right_rank(scores: Tensor, classes: Tensor) -> Tensor:
    """How many classes are guessed before the right one: (N, K) scores and (N,) classes to (N,) int64.

    Of classes with equal scores the one with the smaller number is guessed first, so that no score is worth its tie.
    """
    own = scores.gather(1, classes[:, None])
    smaller = torch.arange(scores.shape[1], device=scores.device) < classes[:, None]
    return ((scores > own) | ((scores == own) & smaller)).sum(dim=1)


def top_row(metric: Metric, top: int, ranks: Mapping[str, Tensor]) -> Row:
    """The fraction of images whose right class has fewer than `top` before it, with intervals.

    Args:
        metric: of the row.
        top: number of guesses.
        ranks: `right_rank` of all images, by the subjects' names.
    """
    right = {name: int((found < top).sum()) for name, found in ranks.items()}
    values = {name: number / len(ranks[name]) for name, number in right.items()}
    return Row(metric, values, {name: wilson_interval(number, len(ranks[name])) for name, number in right.items()})
