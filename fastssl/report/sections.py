"""What there is to show of each evaluation: its words, its picture, its metrics, and the command that measures it.

To show another one, add it to `EVALUATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastssl.shards import DomainName

_BETTER = {"lower": "lower is better", "higher": "higher is better", "near 0.5": "nearest to 0.5 is best", "": ""}
_PIXELS = "% of pixels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Something that was measured, such as the trained network, and what it is."""

    name: str
    """In the summary."""
    title: str
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How a number is shown, and which values are good ones."""

    name: str
    """In the summary."""
    title: str
    unit: str = ""
    better: Literal["lower", "higher", "near 0.5", ""] = ""
    digits: int = 3
    factor: float = 1
    key_title: str = ""
    """Among the key results; empty where it is none of them."""

    @property
    def hint(self) -> str:
        """Unit and good values in words."""
        return ", ".join(filter(None, (self.unit, _BETTER[self.better])))

    def text(self, value: float) -> str:
        """The value as it is shown."""
        return f"{value * self.factor:.{self.digits}f}" if math.isfinite(value) else "not finite"

    def cost(self, value: float) -> float:
        """Smaller is better; what is not a finite number is worst."""
        if not math.isfinite(value):
            return math.inf
        return {"lower": value, "higher": -value, "near 0.5": abs(value - 0.5), "": 0.0}[self.better]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Metrics that belong together."""

    title: str = ""
    section: tuple[str, ...]
    """Where they stand in the summary."""
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A picture that the evaluation leaves in the run's samples, in words for those who see it and who do not."""

    file: str
    caption: str
    alternative: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A section of the page."""

    name: str
    """Of its section in the summary, and of its command."""
    title: str
    short_title: str
    """Where there is little room."""
    arguments: str
    """Of its command, after the run."""
    note: str = ""
    """What is measured, and how."""
    remark: str = ""
    """Shown beside the numbers; `{layer}` is what the summary has under this name."""
    sheet: Sheet | None = None
    groups: tuple[Group, ...]
    of_planes: bool = False
    """Only a run whose method predicts planes can be measured so."""
    fitted_on: tuple[DomainName, ...] = ()
    """Only a run that names training data of these domains can be measured so."""


COLUMNS = (
    Column(name="trained", title="Trained"),
    Column(name="not_adapted", title="Not adapted", meaning="the network of a run without adaptation"),
    Column(name="untrained", title="Untrained", meaning="the same network before training"),
    Column(
        name="constant",
        title="Constant",
        meaning=(
            "the best prediction that does not look at the image: one depth, one normal and one contour probability, "
            "fitted on the training images"
        ),
    ),
)
"""In the order of the tables."""

_DEPTH = (
    Metric(name="rmse", title="Root mean square error", unit="m", better="lower", key_title="Depth error, RMS"),
    Metric(name="log_rmse", title="Root mean square error of log depth", better="lower"),
    Metric(name="abs_rel", title="Absolute relative error", better="lower"),
    Metric(
        name="delta_1.25",
        title="Within a factor of 1.25 of the truth",
        unit=_PIXELS,
        better="higher",
        digits=1,
        factor=100,
    ),
)
_NORMAL = (
    Metric(
        name="mean",
        title="Mean angle to the truth",
        unit="degrees",
        better="lower",
        digits=1,
        key_title="Normal error, mean",
    ),
    Metric(name="median", title="Median angle to the truth", unit="degrees", better="lower", digits=1),
    Metric(name="within_11.25", title="Within 11.25 degrees", unit=_PIXELS, better="higher", digits=1, factor=100),
    Metric(name="within_22.5", title="Within 22.5 degrees", unit=_PIXELS, better="higher", digits=1, factor=100),
    Metric(name="within_30", title="Within 30 degrees", unit=_PIXELS, better="higher", digits=1, factor=100),
)
_CONTOURS = (
    Metric(name="f", title="F-measure at the best threshold", better="higher", key_title="Contour F-measure"),
    # Neither of these is better by itself: marking every pixel has a recall of 1.
    Metric(name="precision", title="Precision there"),
    Metric(name="recall", title="Recall there"),
    Metric(name="threshold", title="That threshold", digits=2),
)
_NEIGHBOURS = (
    Metric(name="precision_at_1", title="Precision at 1", better="higher", key_title="Neighbours, precision at 1"),
    Metric(name="precision_at_5", title="Precision at 5", better="higher", key_title="Neighbours, precision at 5"),
)
_DOMAIN = (
    Metric(
        name="accuracy",
        title="Accuracy of a linear domain classifier",
        better="near 0.5",
        key_title="Domain accuracy",
    ),
)
_LAYER = "The features are those of {layer}, averaged over the image."

EVALUATIONS = (
    Evaluation(
        name="tasks",
        title="Held-out predictions",
        short_title="Held-out predictions",
        arguments="--synthetic HELD_OUT_RENDERS",
        sheet=Sheet(
            file="tasks.png",
            caption=(
                "Rendered images that the network has not seen. Depth is light where near and dark where far. Normals "
                "are red where they point right, green where up, blue towards the viewer. Contours are dark where "
                "certain. Gray pixels of the ground truth are not known."
            ),
            alternative=(
                "Held-out rendered images in rows: the image, then the ground truth and the prediction of every task"
            ),
        ),
        groups=(
            Group(title="Depth", section=("tasks", "depth"), metrics=_DEPTH),
            Group(title="Surface normals", section=("tasks", "normal"), metrics=_NORMAL),
            Group(title="Object contours", section=("tasks", "edge"), metrics=_CONTOURS),
        ),
        of_planes=True,
    ),
    Evaluation(
        name="neighbours",
        title="Nearest neighbours",
        short_title="Neighbours",
        arguments="--real HELD_OUT_PHOTOS",
        note=(
            "Every held-out crop looks for its nearest neighbours among all others. A neighbour is right if it comes "
            "from the same photograph. Precision at k is the share of right ones among the first k."
        ),
        remark=_LAYER,
        sheet=Sheet(
            file="neighbours.png",
            caption=(
                "Queries and their nearest neighbours by every network, nearest first. A green frame marks a crop of "
                "the same photograph."
            ),
            alternative="Query crops in rows, each with its nearest neighbours by every network; right ones are framed",
        ),
        groups=(Group(section=("neighbours",), metrics=_NEIGHBOURS),),
    ),
    Evaluation(
        name="domain",
        title="Telling rendered from real",
        short_title="Domains",
        arguments="--synthetic HELD_OUT_RENDERS --real HELD_OUT_PHOTOS",
        note=(
            "A linear classifier is fitted on features of the training images to tell rendered images from photos. Its "
            "accuracy on held-out images is the mean of both domains' accuracies. Chance is 0.5: there the features "
            "no longer show where an image comes from. At 1 they always do."
        ),
        remark=_LAYER,
        groups=(Group(section=("domain",), metrics=_DOMAIN),),
        fitted_on=("synthetic", "real"),
    ),
)
"""In the order of the page."""


def key_metrics() -> Iterator[tuple[Group, Metric]]:
    """The metrics that are key results, each with its group."""
    for evaluation in EVALUATIONS:
        for group in evaluation.groups:
            yield from ((group, metric) for metric in group.metrics if metric.key_title)
