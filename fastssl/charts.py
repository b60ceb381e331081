"""Charts, drawn by Matplotlib: a series over training steps as SVG for a page, and histograms as a picture.

Whatever settings of Matplotlib a user has, they neither change what is drawn here nor are changed by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

Point = tuple[float, float]
"""Step and value."""

WIDTH, HEIGHT = 360, 196
"""Size of a line chart in the units of its drawing."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 348, 8, 158
"""The area that the axes enclose."""
_MOST_POINTS = 200
_LOG_FROM_RATIO = 50
_STEPS = (1, 2, 5, 10)
"""Between ticks, times a power of ten."""

# Colours that are drawn, and the variables of the page's style that stand in their place.
_LINE, _MUTED, _GRID, _AXIS = "#000001", "#000002", "#000003", "#000004"
_VARIABLES = {_LINE: "var(--line)", _MUTED: "var(--muted)", _GRID: "var(--grid)", _AXIS: "var(--other)"}
_FONT = "DejaVu Sans"
_ON_A_PAGE = {
    "svg.fonttype": "none",  # words stay words
    "font.sans-serif": [_FONT],
    "font.size": 11,
    "path.simplify": False,
    "axes.autolimit_mode": "round_numbers",
    "axes.edgecolor": _AXIS,
    "axes.labelcolor": _MUTED,
    "xtick.color": _AXIS,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _AXIS,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
}

_BAR, _RULE, _GRAY = "#346eaa", "#e4e4e4", "#6e6e6e"
_IN_A_PICTURE = {
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": _GRAY,
    "axes.axisbelow": True,
    "axes.autolimit_mode": "round_numbers",
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
}
_COLUMNS, _PANEL_INCHES, _DPI = 3, (3.9, 2.7), 100
_FEW = 5000
"""Fewer things than this are shown by their number."""
_MANY_BARS = 64
"""Up to this many have gaps between them."""
_BAR_WIDTH = 0.92
_LEAST_OF_HIGHEST = 1 / 100
"""Height of the bar of a rare value."""


class Reference(NamedTuple):
    """A value that the series is compared with, drawn as a dashed line, and what it stands for."""

    value: float
    meaning: str


class Reading(NamedTuple):
    """A place across the drawing, and the step and value there in words."""

    across: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """A series as a drawing and in words."""

    drawing: str
    """Content of an `svg` element of `WIDTH` and `HEIGHT`; empty where no value is finite.

    Its colours are the CSS variables `--line` of the curve, `--muted`, `--grid` and `--other`.
    """
    last: str
    """The last value."""
    notes: str
    """Words without which the axes cannot be read."""
    words: str
    """Number of values, range and end of the series."""
    readings: Sequence[Reading]
    """Step and value of every point that is drawn."""


def line_chart(
    points: Sequence[Point], *, key: str, unit: str = "", from_zero: bool = False, reference: Reference | None = None
) -> LineChart:
    """A series over training steps.

    The axis of values is logarithmic where positive values span orders of magnitude. A value that is not finite leaves
    a gap. A long series is drawn by the means of neighbouring points, so that its page stays small.

    Args:
        points: step (0 or more, ascending) and value of every point.
        key: identifies the chart in its page.
        unit: of the values, as shown.
        from_zero: whether the axis of values has to reach zero; it is then never logarithmic.
        reference: shown beside the series, and always inside the axes.
    """
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return LineChart(drawing="", last="", notes="", words="no finite value", readings=())
    drawn = _thinned(points)
    with style.context(["default", _ON_A_PAGE, {"svg.hashsalt": key}]):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes(
            (_LEFT / WIDTH, 1 - _BOTTOM / HEIGHT, (_RIGHT - _LEFT) / WIDTH, (_BOTTOM - _TOP) / HEIGHT)
        )
        _draw_curve(axes, drawn, reference)
        compared = finite if reference is None else [*finite, reference.value]
        _scale_axes(axes, points[-1][0], compared, from_zero=from_zero)
        drawing = _svg_content(figure)
        places = axes.transData.transform([(step, compared[0]) for step, _ in drawn])[:, 0]
    notes = [unit, "logarithmic axis" if axes.get_yscale() == "log" else ""]
    notes.append("" if reference is None else f"dashed: {reference.meaning}")
    return LineChart(
        drawing=drawing,
        last=_short(points[-1][1]),
        notes=", ".join(filter(None, notes)),
        words=_in_words(points, finite),
        readings=[
            Reading(round(float(place), 1), f"step {step:g}: {_short(value)}")
            for place, (step, value) in zip(places, drawn, strict=True)
        ],
    )


def _draw_curve(axes: Axes, points: Sequence[Point], reference: Reference | None) -> None:
    """The points joined by lines, a dot at the end of each piece; a piece of one point would not be seen."""
    steps, values = np.array(points).T
    finite = np.isfinite(values)
    ends = np.flatnonzero(finite & ~np.append(finite[1:], False))
    axes.plot(
        steps,
        np.where(finite, values, np.nan),
        color=_LINE,
        linewidth=1.8,
        solid_joinstyle="round",
        solid_capstyle="round",
        marker="o",
        markevery=ends.tolist(),
        gid="curve",
        clip_on=False,
    )
    if reference is not None:
        axes.axhline(reference.value, color=_MUTED, linewidth=1, linestyle=(0, (4, 4)), gid="reference", clip_on=False)


def _scale_axes(axes: Axes, last_step: float, values: Sequence[float], *, from_zero: bool) -> None:
    """Steps from zero; values from a round number below all of them to one above."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM_RATIO and not from_zero:
        axes.set_yscale("log")
        _mark(axes.yaxis, LogLocator(numticks=6))
        axes.set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
    else:
        if from_zero:
            low, high = min(low, 0.0), max(high, 0.0) or 1.0
        if math.isclose(low, high):
            low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
        locator = MaxNLocator(5, steps=_STEPS)
        _mark(axes.yaxis, locator)
        axes.set_ylim(*locator.view_limits(low, high))
    _mark(axes.xaxis, MaxNLocator(5, steps=_STEPS, integer=True))
    axes.set_xlim(0, max(last_step, 1))
    axes.set_xlabel("step")
    axes.grid(axis="y", color=_GRID, clip_on=False)
    axes.spines[["top", "left", "right"]].set_visible(False)


def _mark(axis: Axis, locator: Locator) -> None:
    """Put ticks at the locator's places, with numbers as short as can be."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: _short(value))


def _svg_content(figure: Figure) -> str:
    """The drawing of a figure to be put into a page: in its font and colours, and without names that others have."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    text = StringIO()
    figure.savefig(text, format="svg")
    # What comes before tells the date and the program, and gives a style to all elements of a page.
    _, _, content = text.getvalue().removesuffix("</svg>\n").partition("</defs>")
    content = content.replace('<g id="', '<g class="')
    content = re.sub(
        rf"font-size: [^;]*; font-family: '{_FONT}', sans-serif; | transform=\"rotate\(-0 [^\"]*\"", "", content
    )
    return re.sub("|".join(_VARIABLES), lambda colour: _VARIABLES[colour[0]], content)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST_POINTS` points: means of neighbours, so that a long run's page stays small."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def _in_words(points: Sequence[Point], finite: Sequence[float]) -> str:
    bad = len(points) - len(finite)
    return (
        f"{len(points)} values from step {points[0][0]:g} to {points[-1][0]:g}; "
        f"lowest {_short(min(finite))}, highest {_short(max(finite))}, last {_short(points[-1][1])}"
        f"{f', {bad} not finite' if bad else ''}."
    )


def _short(value: float) -> str:
    """Four digits at most: 0.0313, 12.5, 150k, 1e-5."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k" if abs(value) < 1e7 else _exponent(f"{value:.3g}")
    return _exponent(f"{value:.4g}")


def _exponent(text: str) -> str:
    return re.sub(r"e([+-])0*", lambda sign: "e-" if sign[1] == "-" else "e", text)


# Pictures

Panel = Callable[[Axes], None]
"""A function that draws a panel of a picture."""


def panels(draw: Sequence[Panel]) -> Image.Image:
    """A picture of several panels in rows, three in each."""
    rows = math.ceil(len(draw) / _COLUMNS)
    width, height = _PANEL_INCHES
    with style.context(["default", _IN_A_PICTURE]):
        figure = Figure(figsize=(width * _COLUMNS, height * rows), dpi=_DPI, layout="constrained")
        for axes, draw_one in zip_longest(figure.subplots(rows, _COLUMNS, squeeze=False).flat, draw):
            if draw_one is None:
                axes.remove()
            else:
                draw_one(axes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def histogram(
    axes: Axes,
    *,
    counts: NDArray[np.integer],
    edges: NDArray[np.floating],
    title: str,
    unit: str,
    of: str,
    note: str = "",
    logarithmic: bool = False,
) -> None:
    """Draw counted values as bars between the edges of their bins.

    Of many things the bars show the fraction of all, of few their number.

    Args:
        axes: where.
        counts: (N,) of each bin.
        edges: (N + 1,) ascending.
        title: stands above.
        unit: of the values, as shown below the axis.
        of: what was counted, such as "pixels".
        note: a line below the title.
        logarithmic: whether the axis of values is.
    """
    _head(axes, title, note)
    total = int(counts.sum())
    if not total:
        axes.set_axis_off()
        axes.text(0, 0.9, "no values", transform=axes.transAxes)
        return
    in_percent = total >= _FEW
    heights = counts / total * 100 if in_percent else counts.astype(np.float64)
    # A value that occurs is seen, however rare.
    heights = np.where(counts > 0, np.maximum(heights, heights.max() * _LEAST_OF_HIGHEST), 0)
    width = np.diff(edges) * (_BAR_WIDTH if len(counts) <= _MANY_BARS else 1)
    axes.bar(edges[:-1], heights, width, align="edge", color=_BAR)
    if logarithmic:
        axes.set_xscale("log")
    _mark(axes.xaxis, LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(6, steps=_STEPS))
    axes.set_xlim(edges[0], edges[-1])
    locator = MaxNLocator(5, steps=_STEPS, integer=not in_percent)
    _mark(axes.yaxis, locator)
    axes.set_ylim(*locator.view_limits(0, heights.max()))
    axes.grid(axis="y", color=_RULE)
    axes.set_xlabel(unit)
    axes.set_ylabel(f"% of {of}" if in_percent else of)


def disc(axes: Axes, *, counts: NDArray[np.integer], title: str, note: str) -> None:
    """Draw directions towards the camera as the half ball that the camera would see; darker where there are more.

    Args:
        axes: where.
        counts: (N, N) of each cell of the square around the disc, from left to right and from up to down.
        title: stands above.
        note: a line below the title.
    """
    _head(axes, title, note)
    image = axes.imshow(np.log1p(counts), cmap="Blues", extent=(-1, 1, 1, -1))
    for angle in (30, 60, 90):
        ring = Circle((0, 0), math.sin(math.radians(angle)), fill=False, color=_GRAY, linewidth=0.8, clip_on=False)
        axes.add_patch(ring)
    image.set_clip_path(ring)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_ylim(1.2, -1.2)
    axes.set_axis_off()
    axes.text(0, -1.04, "up", ha="center", va="bottom")
    axes.text(0, 1.04, "down", ha="center", va="top")
    axes.text(-1.06, 0, "left", ha="right", va="center")
    axes.text(1.06, 0, "right", ha="left", va="center")


def _head(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, pad=8 + 12 * len(note.splitlines()))
    axes.annotate(
        note,
        xy=(0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        color=_GRAY,
        fontsize=8,
        in_layout=False,  # or the column would become narrow
    )
