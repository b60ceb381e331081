"""What an evaluation is: what it measures, of what, and how its numbers are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar, Protocol, runtime_checkable

from PIL import Image

from fastssl.config import Config
from fastssl.evaluate.subject import Subject
from fastssl.metrics import Better as Better
from fastssl.metrics import Interval
from fastssl.metrics import Metric as Metric

Dataset = str | PathLike[str]
"""A packed dataset: a folder or an address. An evaluation's field of this type becomes an option that takes either."""


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of all subjects."""

    metric: Metric
    values: Mapping[str, float | None]
    """By the subjects' names; None where there is no value, of which a warning has told why."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals of the values, by the subjects' names; of the subjects that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an evaluation found."""

    rows: Sequence[Row]
    conditions: Mapping[str, object]
    """What the numbers depend on besides the subjects, such as the layer and the number of images; JSON values."""
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    """By file name."""

    def section(self) -> dict[str, Any]:
        """The evaluation's section of `summary.json`: each metric's values at its path, and the conditions.

        Intervals stand beside the values, as lists of two.
        """
        section: dict[str, Any] = {}
        for row in self.rows:
            _placed(section, row.metric.path).update(row.values)
            if row.intervals:
                ends = {name: list(interval) for name, interval in row.intervals.items()}
                _placed(section, row.metric.interval_path).update(ends)
        return {**section, "conditions": dict(self.conditions)}


def _placed(section: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The place of a path in a section, made where it is not there yet."""
    for name in path:
        section = section.setdefault(name, {})
    return section


@dataclass(frozen=True, slots=True)
class Sheet:
    """A picture that an evaluation draws, as a report shows it."""

    file: str
    alternative: str
    """Words for those who do not see it."""
    caption: str


class Evaluation(Protocol):
    """A way to measure subjects, one per file, as a frozen dataclass.

    Its docstring is the command's help. Its fields are the command's options, each ``Annotated[TYPE, "help"]``, and it
    is made from them by name; `metrics` are all that it can give, in the order in which they are shown.
    """

    name: ClassVar[str]
    """The name on the command line, and of its section in `summary.json`."""
    title: ClassVar[str]
    """The heading in a report."""
    note: ClassVar[str]
    """What the numbers mean, for those who read a report."""
    metrics: ClassVar[tuple[Metric, ...]]
    sheet: ClassVar[Sheet | None]

    @staticmethod
    def lack(config: Config) -> str:
        """Why it cannot measure a run with these settings, as a sentence; empty where it can."""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Measure a subject, the others beside it, and what the subject is always compared with.

        Raises:
            DataError, UsageError: a dataset, or the subject, that cannot be measured.
        """


@runtime_checkable
class ScoresPredictions(Protocol):
    """An evaluation that also scores predictions that were made elsewhere; its command then takes no run."""

    def scored(self) -> Measured | None:
        """What it finds of the predictions that its options name, in a column of their own; None where they name none.

        Raises:
            DataError: predictions, or what they are compared with, that cannot be used.
        """
