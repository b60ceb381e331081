"""Measurements of features on images that they were not learnt from, one file per evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fastssl.config import Config
from fastssl.errors import UsageError
from fastssl.evaluate.domain import DomainAccuracy
from fastssl.evaluate.evaluation import Dataset, Evaluation, Measured, Metric, Row, ScoresPredictions, Sheet
from fastssl.evaluate.foreign import DRAWN, absolute_subject, drawn_subject, foreign_subject
from fastssl.evaluate.knn import NearestClasses
from fastssl.evaluate.linear import Linear
from fastssl.evaluate.matching import Matching
from fastssl.evaluate.neighbours import Neighbours
from fastssl.evaluate.normals import Normals
from fastssl.evaluate.results import keep_results
from fastssl.evaluate.subject import REESTIMATED, RunSubject, Subject, fresh_subject, run_subject
from fastssl.evaluate.table import table
from fastssl.evaluate.tasks import Tasks
from fastssl.evaluate.voc_cls import VocClassification
from fastssl.evaluate.voc_det import VocDetection

_EVALUATIONS: tuple[type[Evaluation], ...] = (
    Tasks,
    DomainAccuracy,
    Neighbours,
    Matching,
    NearestClasses,
    Linear,
    VocClassification,
    VocDetection,
    Normals,
)
EVALUATIONS = {evaluation.name: evaluation for evaluation in _EVALUATIONS}
"""All evaluations by their names, in the order of a report."""

_TAKEN = ("trained", f"trained{REESTIMATED}", "subject", f"subject{REESTIMATED}", "untrained", "constant", "unmoved")

__all__ = [
    "DRAWN",
    "EVALUATIONS",
    "Dataset",
    "DomainAccuracy",
    "Evaluation",
    "Linear",
    "Matching",
    "Measured",
    "Metric",
    "NearestClasses",
    "Neighbours",
    "Normals",
    "Row",
    "ScoresPredictions",
    "Sheet",
    "Subject",
    "Tasks",
    "VocClassification",
    "VocDetection",
    "absolute_subject",
    "evaluate",
    "keep_results",
    "run_subject",
    "table",
]


def evaluate(
    evaluation: Evaluation, run: Path | None, beside: Mapping[str, Path] | None = None, *, like: Config | None = None
) -> Measured:
    """Measure a run, and keep what was found in its folder.

    The numbers become the section of `summary.json` that has the evaluation's name, and replace an older one; pictures
    go into `samples/`.

    Args:
        evaluation: such as ``Tasks(synthetic="rooms/val")``.
        run: the run folder, or a checkpoint of it; `conditions` tell which, and its step. Or a subject that is
            no run, as `foreign_subject` takes it, of which nothing is kept; its column is `subject`. None where the
            evaluation names predictions that were made elsewhere, which it scores; nothing of them is kept.
        beside: others of these that are measured in the same way, by the name of their column; `init:gaussian` and
            `init:kraehenbuehl` are the backbone of the first with weights that are drawn (`drawn_subject`).
        like: settings of a run, with which the first may be such an initialisation too: of the backbone that they
            name, drawn from their seed, and seeing images in their way.

    Raises:
        DataError: one of the folders is no run, or a dataset cannot be used; see the evaluation.
        UsageError: a name in `beside` is taken or is none, or the evaluation cannot measure these runs; or there are
            both a run and predictions, or neither.
    """
    if (scored := _scored(evaluation)) is not None:
        if run is not None or beside:
            seen, hint = run or ", ".join(beside or ()), "measure the run by itself"
            raise UsageError("predictions that were made elsewhere are scored without a run", seen=seen, hint=hint)
        return scored
    if run is None:
        raise UsageError("there is nothing to measure", expected="a run, or predictions that were made elsewhere")
    _check_names(beside or {})
    subject = _first(str(run), like)
    others = [_other(subject, str(other), name) for name, other in (beside or {}).items()]
    for one in (subject, *others):
        if lack := evaluation.lack(one.config):
            raise UsageError(
                lack.rstrip("."),
                where=one.run if isinstance(one, RunSubject) else one.name,
                seen=f"method {one.config.method}",
                hint=None if one is subject else "leave it out",
            )
    measured = evaluation(subject, others)
    if not isinstance(subject, RunSubject):
        return measured
    which = {"checkpoint": run.name, "step": subject.step} if run.is_file() else {"step": subject.step}
    measured = replace(measured, conditions={**which, **measured.conditions})
    keep_results(subject.run, {evaluation.name: measured.section()}, measured.pictures)
    return measured


def _first(text: str, like: Config | None) -> Subject:
    if not text.startswith(DRAWN):
        return foreign_subject(text, "subject") or run_subject(Path(text))
    if like is None:
        what = "it needs another subject, of whose backbone it is"
        raise UsageError(what, seen=text, hint="give it to --beside")
    drawn = drawn_subject(fresh_subject(like, "subject"), text, "subject", like.train.seed)
    assert drawn is not None  # as its text begins so
    return drawn


def _other(subject: Subject, text: str, name: str) -> Subject:
    return drawn_subject(subject, text, name) or foreign_subject(text, name) or run_subject(Path(text), name)


def _scored(evaluation: Evaluation) -> Measured | None:
    return evaluation.scored() if isinstance(evaluation, ScoresPredictions) else None


def _check_names(beside: Mapping[str, Path]) -> None:
    for name in beside:
        if name in _TAKEN or not re.fullmatch("[a-z][a-z0-9_]*", name):
            expected = f"small letters, digits and _, and none of {', '.join(_TAKEN)}"
            raise UsageError("a run cannot have this name beside others", seen=name, expected=expected)
