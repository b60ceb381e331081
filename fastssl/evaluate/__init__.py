"""Measurements of features on images that they were not learnt from, one file per evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fastssl.errors import UsageError
from fastssl.evaluate.domain import DomainAccuracy
from fastssl.evaluate.evaluation import Dataset, Evaluation, Measured, Metric, Row, Sheet
from fastssl.evaluate.foreign import GAUSSIAN, foreign_subject, gaussian
from fastssl.evaluate.knn import NearestClasses
from fastssl.evaluate.linear import Linear
from fastssl.evaluate.matching import Matching
from fastssl.evaluate.neighbours import Neighbours
from fastssl.evaluate.normals import Normals
from fastssl.evaluate.results import keep_results
from fastssl.evaluate.subject import REESTIMATED, RunSubject, Subject, run_subject
from fastssl.evaluate.table import table
from fastssl.evaluate.tasks import Tasks

_EVALUATIONS: tuple[type[Evaluation], ...] = (
    Tasks,
    DomainAccuracy,
    Neighbours,
    Matching,
    NearestClasses,
    Linear,
    Normals,
)
EVALUATIONS = {evaluation.name: evaluation for evaluation in _EVALUATIONS}
"""All evaluations by their names, in the order of a report."""

_TAKEN = ("trained", f"trained{REESTIMATED}", "subject", f"subject{REESTIMATED}", "untrained", "constant", "unmoved")

__all__ = [
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
    "Sheet",
    "Subject",
    "Tasks",
    "evaluate",
    "run_subject",
    "table",
]


def evaluate(evaluation: Evaluation, run: Path, beside: Mapping[str, Path] | None = None) -> Measured:
    """Measure a run, and keep what was found in its folder.

    The numbers become the section of `summary.json` that has the evaluation's name, and replace an older one; pictures
    go into `samples/`.

    Args:
        evaluation: such as ``Tasks(synthetic="rooms/val")``.
        run: the run folder, or a checkpoint of it; the numbers of one say so under `conditions`. Or a subject that is
            no run, as `foreign_subject` takes it, of which nothing is kept; its column is `subject`.
        beside: others of these that are measured in the same way, by the name of their column; `init:gaussian` is the
            backbone of the first with weights that are drawn.

    Raises:
        DataError: one of the folders is no run, or a dataset cannot be used; see the evaluation.
        UsageError: a name in `beside` is taken or is none, or the evaluation cannot measure these runs.
    """
    for name in beside or {}:
        if name in _TAKEN or not re.fullmatch("[a-z][a-z0-9_]*", name):
            expected = f"small letters, digits and _, and none of {', '.join(_TAKEN)}"
            raise UsageError("a run cannot have this name beside others", seen=name, expected=expected)
    if str(run) == GAUSSIAN:
        raise UsageError("it needs another subject, of whose backbone it is", seen=GAUSSIAN, hint="give it to --beside")
    subject = foreign_subject(str(run), "subject") or run_subject(run)
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
    if run.is_file():
        measured = replace(measured, conditions={"checkpoint": run.name, **measured.conditions})
    keep_results(subject.run, {evaluation.name: measured.section()}, measured.pictures)
    return measured


def _other(subject: Subject, text: str, name: str) -> Subject:
    if text == GAUSSIAN:
        return gaussian(subject, name)
    return foreign_subject(text, name) or run_subject(Path(text), name)
