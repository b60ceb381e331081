"""Charts: a series over training steps as a figure for an HTML page, and a histogram as a picture.

How they are drawn (scales, ticks, what is done with many points and with values that are not finite) is decided
here. Colours and line widths of a figure are those that `report.html` gives to the classes of the elements.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
"""Step and value."""

# The drawing, in the units of its view box; the plot area is what the axes enclose.
_WIDTH, _HEIGHT = 360, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 348, 8, 158
_MOST_POINTS = 200

PANEL = (370, 250)
"""Width and height of a histogram, in pixels; the lines below lie inside of it."""
_PANEL_LEFT, _PANEL_RIGHT, _PANEL_TOP, _FLOOR = 46, 356, 58, 208
_INK, _GRAY, _RULE, _BAR = (40, 40, 40), (110, 110, 110), (228, 228, 228), (52, 110, 170)
_FEW = 5000
"""Fewer things than this are shown by their number."""
_LOG_FROM_RATIO = 50


class Reference(NamedTuple):
    """A value that the series is compared with, drawn as a dashed line, and what it stands for."""

    value: float
    meaning: str


def histogram(
    counts: NDArray[np.integer], edges: NDArray[np.floating], *, title: str, unit: str, of: str, note: str = ""
) -> Image.Image:
    """A picture of counted values, as bars between the edges of their bins.

    Bins of equal ratio get a logarithmic axis. Of many things the bars show the fraction of all, of few their number.

    Args:
        counts: (N,) of each bin.
        edges: (N + 1,) ascending.
        title: stands above.
        unit: of the values, as shown below the axis.
        of: what was counted, such as "pixels".
        note: a line below the title.
    """
    picture = Image.new("RGB", PANEL, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), title, fill=_INK, font=_font(14))
    draw.text((0, 19), note, fill=_GRAY, font=_font(11))
    total = int(counts.sum())
    if not total:
        draw.text((0, 40), "no values", fill=_INK, font=_font(12))
        return picture
    in_percent = total >= _FEW
    heights = counts / total * 100 if in_percent else counts.astype(np.float64)
    x, y = _bin_scale(edges), _height_scale(heights, whole=not in_percent)
    _draw_axes(draw, x, y, unit=unit, of=f"% of {of}" if in_percent else of)
    for low, high, height in zip(edges, edges[1:], heights, strict=False):
        if height:
            left, right = round(x.at(low)), round(x.at(high))
            # A value that occurs is seen, however rare.
            draw.rectangle(
                [left, min(round(y.at(height)), _FLOOR - 1), max(right - 1 - (right - left > 4), left), _FLOOR],
                fill=_BAR,
            )
    draw.line([(_PANEL_LEFT, _FLOOR), (_PANEL_RIGHT, _FLOOR)], fill=_INK)
    return picture


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


def _bin_scale(edges: NDArray[np.floating]) -> _Scale:
    low, high = float(edges[0]), float(edges[-1])
    log = low > 0 and len(edges) > 2 and math.isclose(edges[1] / low, high / edges[-2], rel_tol=1e-6)
    log = log and not math.isclose(edges[1] - low, high - edges[-2], rel_tol=1e-6)
    if not log:
        ticks = [tick for tick in _round_numbers(low, high) if low <= tick <= high]
        return _Scale(low, high, _PANEL_LEFT, _PANEL_RIGHT, ticks)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for factor in (1, 2, 5) if low <= (tick := factor * 10.0**power) <= high]
    if len(ticks) < 2:  # a range so narrow that its axis could as well be linear
        ticks = [tick for tick in _round_numbers(low, high) if low <= tick <= high]
    return _Scale(low, high, _PANEL_LEFT, _PANEL_RIGHT, ticks, log=True)


def _height_scale(heights: NDArray[np.floating], *, whole: bool) -> _Scale:
    numbers = _round_numbers(0, float(heights.max()))
    ticks = [number for number in numbers if number.is_integer() or not whole]
    return _Scale(0, numbers[-1], _FLOOR, _PANEL_TOP, ticks)


def _draw_axes(draw: ImageDraw.ImageDraw, x: _Scale, y: _Scale, *, unit: str, of: str) -> None:
    font = _font(11)
    for tick, label in zip(y.ticks, _tick_labels(y.ticks), strict=True):
        height = round(y.at(tick))
        draw.line([(_PANEL_LEFT, height), (_PANEL_RIGHT, height)], fill=_RULE)
        draw.text((_PANEL_LEFT - 6, height), label, fill=_INK, font=font, anchor="rm")
    for tick, label in zip(x.ticks, _tick_labels(x.ticks), strict=True):
        place = round(x.at(tick))
        draw.line([(place, _FLOOR), (place, _FLOOR + 4)], fill=_INK)
        draw.text((place, _FLOOR + 6), label, fill=_INK, font=font, anchor="mt")
    draw.text(((_PANEL_LEFT + _PANEL_RIGHT) / 2, _FLOOR + 22), unit, fill=_GRAY, font=font, anchor="mt")
    draw.text((_PANEL_LEFT, _PANEL_TOP - 6), of, fill=_GRAY, font=font, anchor="ls")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


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
