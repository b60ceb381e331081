"""Line charts: a series over training steps in, a figure for an HTML page out.

How a series is drawn (scales, ticks, what is done with many points and with values that are not finite) is decided
here; colours and line widths are those that `report.html` gives to the classes of the elements.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]
"""Step and value."""

# The drawing, in the units of its view box; the plot area is what the axes enclose.
_WIDTH, _HEIGHT = 360, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 348, 8, 158
_MOST_POINTS = 200
_LOG_FROM_RATIO = 50


class Reference(NamedTuple):
    """A value that the series is compared with, drawn as a dashed line, and what it stands for."""

    value: float
    meaning: str


def line_chart(
    points: Sequence[Point],
    *,
    key: str,
    name: str,
    unit: str,
    colour: str = "plain",
    from_zero: bool = False,
    reference: Reference | None = None,
) -> str:
    """A figure with a heading, the last value, and the series as SVG, which names step and value under the pointer.

    The axis of values is logarithmic where positive values span orders of magnitude. A value that is not finite leaves
    a gap. A long series is drawn by the means of neighbouring points, so that its page stays small.

    Args:
        points: step (0 or more, ascending) and value of every point.
        key: identifies the chart in its page; letters, digits and hyphens.
        name: the heading.
        unit: of the values, as shown.
        colour: class of the figure, by which the page's style chooses the curve's colour.
        from_zero: whether the axis of values has to reach zero; it is then never logarithmic.
        reference: shown beside the series, and always inside the axes.

    Returns:
        A `figure` element, well-formed as XML; without a drawing where no value is finite.
    """
    name = html.escape(name)
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return f'<figure class="chart"><figcaption><h3>{name}</h3>no finite value</figcaption></figure>'
    last_step, last = points[-1]
    y = _y_scale([*finite, *([] if reference is None else [reference.value])], from_zero=from_zero)
    x = _x_scale(last_step)
    drawn = _thinned(points)
    notes = [unit]
    if y.log:
        notes.append("logarithmic axis")
    if reference is not None:
        notes.append(f"dashed: {reference.meaning}")
    bad = len(points) - len(finite)
    words = (
        f"{len(points)} values from step {points[0][0]:g} to {last_step:g}; "
        f"lowest {_short(min(finite))}, highest {_short(max(finite))}, last {_short(last)}"
        f"{f', {bad} not finite' if bad else ''}."
    )
    return (
        f'<figure class="chart {colour}"><figcaption><h3>{name}</h3><b>{_short(last)}</b>'
        f"<small>{html.escape(', '.join(notes))}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{key}-title {key}-words">'
        f'<title id="{key}-title">{name}</title><desc id="{key}-words">{words}</desc>'
        f"{_axes(x, y)}{_reference_line(reference, y)}{_polylines(drawn, x, y)}{_readings(drawn, x)}</svg></figure>"
    )


class _Scale(NamedTuple):
    """Maps low to start and high to end, in the units of the view box."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _x_scale(last_step: float) -> _Scale:
    high = max(last_step, 1)
    return _Scale(
        0, high, _LEFT, _RIGHT, [tick for tick in _round_numbers(0, high) if tick <= high and tick.is_integer()]
    )


def _y_scale(values: Sequence[float], *, from_zero: bool) -> _Scale:
    """From a round number below all values to one above; logarithmic where they span orders of magnitude."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM_RATIO and not from_zero:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = [10.0**power for power in range(first, last + 1, math.ceil((last - first) / 5))]
        return _Scale(10.0**first, 10.0**last, _BOTTOM, _TOP, powers, log=True)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if math.isclose(low, high):
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    numbers = _round_numbers(low, high)
    return _Scale(numbers[0], numbers[-1], _BOTTOM, _TOP, numbers)


def _round_numbers(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about five of them, that enclose low and high."""
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _axes(x: _Scale, y: _Scale) -> str:
    parts = []
    for tick, label in zip(y.ticks, _tick_labels(y.ticks), strict=True):
        height = y.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{height:.1f}" x2="{_RIGHT}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
    for tick, label in zip(x.ticks, _tick_labels(x.ticks), strict=True):
        place = x.at(tick)
        parts.append(f'<line class="axis" x1="{place:.1f}" y1="{_BOTTOM}" x2="{place:.1f}" y2="{_BOTTOM + 4}"/>')
        parts.append(f'<text x="{place:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_BOTTOM}"/>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 33}" text-anchor="middle">step</text>')
    return "".join(parts)


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """As short as can be, with the same number of decimals on all of them."""
    labels = [_short(tick) for tick in ticks]
    if not all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in labels):
        return labels
    decimals = max(len(label.partition(".")[2]) for label in labels)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _reference_line(reference: Reference | None, y: _Scale) -> str:
    if reference is None:
        return ""
    height = y.at(reference.value)
    return f'<line class="reference" x1="{_LEFT}" y1="{height:.1f}" x2="{_RIGHT}" y2="{height:.1f}"/>'


def _polylines(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    """The points joined by lines, with a gap at every value that is not finite, and a dot at the end of each piece."""
    pieces: list[list[Point]] = [[]]
    for step, value in points:
        if math.isfinite(value):
            pieces[-1].append((x.at(step), y.at(value)))
        elif pieces[-1]:
            pieces.append([])
    parts = []
    for piece in filter(None, pieces):
        places = " ".join(f"{across:.1f},{down:.1f}" for across, down in piece)
        parts.append(f'<polyline class="curve" points="{places}"/>')
        parts.append(f'<circle class="dot" cx="{piece[-1][0]:.1f}" cy="{piece[-1][1]:.1f}" r="3"/>')
    return "".join(parts)


def _readings(points: Sequence[Point], x: _Scale) -> str:
    """Invisible bands, one per point, that name step and value under the pointer."""
    width = (_RIGHT - _LEFT) / len(points)
    height = _BOTTOM - _TOP
    return "".join(
        f'<rect class="reading" x="{x.at(step) - width / 2:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}">'
        f"<title>step {step:g}: {_short(value)}</title></rect>"
        for step, value in points
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST_POINTS` points: means of neighbours, so that a long run's page stays small."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def _short(value: float) -> str:
    """Four digits at most: 0.0313, 12.5, 150k, 1e-5."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k" if abs(value) < 1e7 else _exponent(f"{value:.3g}")
    return _exponent(f"{value:.4g}")


def _exponent(text: str) -> str:
    return re.sub(r"e([+-])0*", lambda sign: "e-" if sign[1] == "-" else "e", text)
