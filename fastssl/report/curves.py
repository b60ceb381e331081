"""The series of `metrics.jsonl` as charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel

from fastssl.charts import LineChart, Reference, line_chart
from fastssl.config import Config
from fastssl.metrics import VALIDATION_METRICS
from fastssl.report.run import Run

_LOSS, _GRADIENT, _VALIDATION = "loss/", "gradient/", "val/"
_NAMES = {"edge": "contour"}
_COLOURED = ("depth", "normal", "edge", "adversarial", "discriminator")
"""Losses whose curves have a colour of their own."""


class Curve(NamedTuple):
    """How a series is shown."""

    series: str
    title: str
    unit: str
    colour: str = "plain"
    """Class of the figure, by which the page's style chooses the colour."""
    factor: float = 1
    from_zero: bool = False


class Drawn(NamedTuple):
    """A curve, the name of its chart in the page, and the chart."""

    curve: Curve
    key: str
    chart: LineChart


_LEARNING_RATE = Curve("lr", "Learning rate", "of the backbone")
_SPEED = (
    Curve("throughput/pairs_per_s", "Throughput", "pairs/s", from_zero=True),
    Curve("throughput/images_per_s", "Throughput", "images/s", from_zero=True),
    Curve("throughput/data_wait_fraction", "Waiting for data", "% of the time", factor=100, from_zero=True),
    Curve("gpu/utilisation_percent", "GPU utilisation", "%", from_zero=True),
    Curve("gpu/power_w", "GPU power", "W", from_zero=True),
    Curve("gpu/memory_gib", "GPU memory in use", "GiB", from_zero=True),
)


def training_charts(run: Run) -> list[Drawn]:
    """The losses and their gradients' norms in the order in which they are logged, and the learning rate."""
    unit = "weighted" if is_weighted(run.config) else ""
    names = dict.fromkeys(name for line in run.metrics for name in line)
    losses = [_loss(name, unit) for name in names if name.startswith(_LOSS)]
    gradients = [_gradient(name) for name in names if name.startswith(_GRADIENT)]
    return _drawn(run, "curve", [*losses, *gradients, _LEARNING_RATE])


def validation_charts(run: Run) -> list[Drawn]:
    """The metrics of held-out images, in the order in which evaluations show them."""
    curves = [
        Curve(
            f"{_VALIDATION}{name}",
            f"{metric.group}: {metric.name[0].lower()}{metric.name[1:]}" if metric.group else metric.name,
            metric.hint,
            factor=metric.factor,
        )
        for name, metric in VALIDATION_METRICS.items()
    ]
    return _drawn(run, "validation", curves)


def speed_charts(run: Run) -> list[Drawn]:
    """Throughput, the wait for data and the GPU's readings."""
    return _drawn(run, "speed", _SPEED)


def is_weighted(config: Config) -> bool:
    """The settings give weights to the losses."""
    loss = getattr(config, "loss", None)
    return isinstance(loss, BaseModel) and any(name.endswith("_weight") for name in type(loss).model_fields)


def _loss(series: str, unit: str) -> Curve:
    name = series.removeprefix(_LOSS)
    return Curve(series, f"{_title(name)} loss", unit, colour=name if name in _COLOURED else "plain")


def _gradient(series: str) -> Curve:
    """How strongly a loss pulls at the backbone."""
    name = series.removeprefix(_GRADIENT)
    title = f"{_title(name)} gradient"
    return Curve(series, title, "norm on the backbone", colour=name if name in _COLOURED else "plain", from_zero=True)


def _title(name: str) -> str:
    return _NAMES.get(name, name).replace("_", " ").capitalize()


def _drawn(run: Run, place: str, curves: Sequence[Curve]) -> list[Drawn]:
    # The losses of a network that knows nothing, such as a discriminator that gives one half for everything.
    chance = {f"{_LOSS}{name}": Reference(loss, "chance") for name, loss in run.method.chance(run.config).items()}
    drawn = list[Drawn]()
    for curve in curves:
        points = [(line["step"], line[curve.series] * curve.factor) for line in run.metrics if curve.series in line]
        if points:
            key = f"{place}-{len(drawn) + 1}"
            chart = line_chart(
                points, key=key, unit=curve.unit, from_zero=curve.from_zero, reference=chance.get(curve.series)
            )
            drawn.append(Drawn(curve, key, chart))
    return drawn
