"""Line charts, read back as XML: curves against their own axes, by hand, and by what a reader of the axes would see.
And histograms, read back from their axes and as pixels.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastssl.charts import LineChart, Reference, disc, histogram, line_chart, panels


def _chart(
    values: Sequence[float],
    steps: Sequence[float] = (),
    *,
    from_zero: bool = False,
    reference: Reference | None = None,
) -> LineChart:
    steps = steps or range(10, 10 * len(values) + 1, 10)
    points = list(zip(steps, values, strict=True))
    return line_chart(points, key="k", unit="nats", from_zero=from_zero, reference=reference)


def _tree(chart: LineChart) -> Element:
    return fromstring(f'<svg xmlns:xlink="x">{chart.drawing}</svg>')


def _groups(chart: LineChart, name: str) -> list[Element]:
    return [group for group in _tree(chart).iter("g") if re.fullmatch(name, group.get("class", ""))]


def _corners(path: Element) -> list[list[tuple[float, float]]]:
    """The corners of every piece of a path of straight lines."""
    pieces = [piece.replace("L", "").split() for piece in path.attrib["d"].split("M")[1:]]
    return [[(float(x), float(y)) for x, y in zip(piece[::2], piece[1::2], strict=True)] for piece in pieces]


def _places(chart: LineChart) -> list[list[tuple[float, float]]]:
    (curve,) = _groups(chart, "curve")
    return _corners(next(curve.iter("path")))


def _dots(chart: LineChart) -> list[tuple[float, float]]:
    (curve,) = _groups(chart, "curve")
    return [(float(dot.attrib["x"]), float(dot.attrib["y"])) for dot in curve.iter("use")]


def _reference(chart: LineChart) -> float:
    """How far down the dashed line is."""
    (group,) = _groups(chart, "reference")
    ((left, right),) = _corners(next(group.iter("path")))
    assert left[1] == right[1]
    assert "stroke-dasharray" in next(group.iter("path")).attrib["style"]
    return left[1]


def _labels(chart: LineChart, name: str) -> list[str]:
    return [str(text.text) for tick in _groups(chart, rf"{name}tick_\d+") for text in tick.iter("text")]


def _axis(chart: LineChart, name: str) -> list[tuple[float, float]]:
    """Value of every label of an axis, and place of its tick or line."""
    ticks = _groups(chart, rf"{name}tick_\d+")
    if name == "x":
        places = [float(next(tick.iter("use")).attrib["x"]) for tick in ticks]
    else:
        places = [_corners(next(tick.iter("path")))[0][0][1] for tick in ticks]
    values = [float(label.replace("k", "e3")) for label in _labels(chart, name)]
    return list(zip(values, places, strict=True))


def _read_off(ticks: Sequence[tuple[float, float]], place: float, *, log: bool = False) -> float:
    """What a reader of the chart takes a place on an axis for, by its first and last tick."""
    (low, start), (high, end) = ticks[0], ticks[-1]
    fraction = (place - start) / (end - start)
    return low * (high / low) ** fraction if log else low + fraction * (high - low)


def test_a_curve_of_three_points_by_hand() -> None:
    chart = _chart([1, 3, 2], steps=[10, 20, 40])
    # The plot reaches from 52 to 348 across, steps 0 to 40, and from 158 up to 8, losses 1 to 3.
    assert _places(chart) == [[(126.0, 158.0), (200.0, 8.0), (348.0, 83.0)]]
    assert [value for value, _ in _axis(chart, "y")] == [1, 1.5, 2, 2.5, 3]
    assert [value for value, _ in _axis(chart, "x")] == [0, 10, 20, 30, 40]
    assert chart.last == "2"
    assert chart.words == "3 values from step 10 to 40; lowest 1, highest 3, last 2."
    assert chart.readings == [(126.0, "step 10: 1"), (200.0, "step 20: 3"), (348.0, "step 40: 2")]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(2**-20, 2**20, width=32) | st.floats(-1000, 1000, width=32), min_size=2, max_size=8),
    first=st.integers(1, 10**6),
)
def test_a_reader_of_the_axes_gets_the_values_back(values: list[float], first: int) -> None:
    steps = [first * number for number in range(1, len(values) + 1)]
    chart = _chart(values, steps)
    across, down = _axis(chart, "x"), _axis(chart, "y")
    log = "logarithmic" in chart.notes
    assert log == (min(values) > 0 and max(values) >= 50 * min(values))
    (piece,) = _places(chart)
    for (x, y), step, value in zip(piece, steps, values, strict=True):
        assert 8 <= y <= 158
        assert _read_off(across, x) == pytest.approx(step, abs=max(steps) / 296)
        if not log:
            # A tenth of a unit of place, and the four digits that a tick label has.
            slack = (down[-1][0] - down[0][0]) / 1000 + 1e-3 * max(abs(down[0][0]), abs(down[-1][0]))
            assert _read_off(down, y) == pytest.approx(value, abs=slack)
        elif len(down) > 1:
            unit = (down[-1][0] / down[0][0]) ** (1 / (down[0][1] - down[-1][1]))  # one unit of place, as a factor
            assert abs(math.log(_read_off(down, y, log=True) / value)) <= 0.15 * math.log(unit)


def test_a_series_over_orders_of_magnitude_has_a_logarithmic_axis() -> None:
    chart = _chart([1e-3, 1e-4, 1e-5])
    (piece,) = _places(chart)
    assert [y for _, y in piece] == [8.0, 83.0, 158.0]
    assert _labels(chart, "y") == ["1e-5", "0.0001", "0.001"]
    assert "logarithmic" not in _chart([49.0, 1.0]).notes
    assert "logarithmic" in _chart([50.0, 1.0]).notes


def test_an_axis_from_zero_is_never_logarithmic() -> None:
    chart = _chart([90.0, 9000.0], from_zero=True)
    assert _axis(chart, "y")[0] == (0, 158)
    assert "logarithmic" not in chart.notes
    assert _axis(_chart([90.0, 100.0]), "y")[0][0] == 90
    assert _axis(_chart([0.0, 0.0], from_zero=True), "y")[0] == (0, 158)  # no negative wait for data


def test_values_that_are_not_finite_leave_a_gap() -> None:
    chart = _chart([1.0, math.nan, 2.0, 3.0, math.inf, -math.inf, 2.0])
    pieces = _places(chart)
    assert [len(piece) for piece in pieces] == [1, 2, 1]
    assert "3 not finite" in chart.words
    assert _dots(chart) == [piece[-1] for piece in pieces]  # a piece of one point has no line to be seen by
    assert [reading.words for reading in chart.readings][1] == "step 20: not finite"


@pytest.mark.parametrize("value", [0.25, 0.0, -3.0])
def test_one_point_is_a_dot_inside_the_axes(value: float) -> None:
    chart = _chart([value], steps=[1])
    ((across, down),) = _dots(chart)
    assert across == 348
    assert [step for step, _ in _axis(chart, "x")] == [0, 1]  # there is no half step
    assert 8 < down < 158
    assert _read_off(_axis(chart, "y"), down) == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("values", [[math.nan, math.inf], []])
def test_a_series_without_any_finite_value_says_so(values: list[float]) -> None:
    chart = _chart(values)
    assert chart.words == "no finite value"
    assert not chart.drawing


@pytest.mark.parametrize("value", [5.0, 2.5, -40.0])
def test_a_reference_is_a_line_at_its_value_and_inside_the_axes(value: float) -> None:
    chart = _chart([2.0, 3.0], reference=Reference(value, "chance"))
    assert 8 <= _reference(chart) <= 158
    assert _read_off(_axis(chart, "y"), _reference(chart)) == pytest.approx(value, abs=0.1)
    assert chart.notes == "nats, dashed: chance"
    assert not _groups(_chart([2.0, 3.0]), "reference")


def test_a_long_series_is_drawn_by_the_means_of_neighbouring_points() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 1000)
    chart = _chart(values.tolist())
    (piece,) = _places(chart)
    ticks = _axis(chart, "y")
    seen = [_read_off(ticks, y) for _, y in piece]
    assert seen == pytest.approx(values.reshape(200, 5).mean(axis=1).tolist(), abs=0.002)
    assert float(chart.last) == pytest.approx(values[-1], abs=0.001)
    assert len(chart.readings) == 200


def test_a_drawing_has_the_page_s_colours_and_font_and_names_of_its_own() -> None:
    points, reference = [(1.0, 2.0), (2.0, 3.0)], Reference(2.5, "chance")
    first, second = (line_chart(points, key=key, reference=reference).drawing for key in "ab")
    styles = [element.attrib["style"] for element in _tree(_chart([1, 2])).iter() if "style" in element.attrib]
    colours = {part for style in styles for part in re.findall(r"(?:stroke|fill): ([^;]*)", style)}
    assert colours == {"var(--line)", "var(--muted)", "var(--grid)", "var(--other)", "none"}
    assert "font" not in first
    assert "url(" not in first
    ids = [set(re.findall(r' id="([^"]*)"', drawing)) for drawing in (first, second)]
    assert all(ids)
    assert ids[0].isdisjoint(ids[1])


def test_settings_of_the_user_s_own_neither_change_a_drawing_nor_are_changed() -> None:
    usual = _chart([1, 2]).drawing
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        assert _chart([1, 2]).drawing == usual
        assert dict(mpl.rcParams) == before


def test_nothing_keeps_figures_for_itself() -> None:
    """As `matplotlib.pyplot` does, which belongs to whoever calls us."""
    code = "import sys, fastssl.charts; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Histograms


def _axes(counts: Sequence[int], edges: Sequence[float], **others: Any) -> Axes:
    axes: Axes = Figure().add_subplot()
    arguments = {"title": "T", "unit": "m", "of": "samples", **others}
    histogram(axes, counts=np.array(counts), edges=np.array(edges, float), **arguments)
    return axes


def _bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_bars_reach_as_high_as_their_counts() -> None:
    axes = _axes([3, 0, 7, 10, 1], range(6), note="N")
    assert [bar.get_height() for bar in _bars(axes)] == [3, 0, 7, 10, 1]
    assert [bar.get_x() for bar in _bars(axes)] == [0, 1, 2, 3, 4]
    assert all(0.9 < bar.get_width() <= 1 for bar in _bars(axes))
    assert axes.get_ylim()[0] == 0
    assert axes.get_title() == "T"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("m", "samples")
    assert [text.get_text() for text in axes.texts] == ["N"]


def test_bars_reach_as_high_as_their_counts_in_pixels() -> None:
    counts = np.array([3, 0, 7, 10, 1])
    picture = panels([partial(histogram, counts=counts, edges=np.arange(6.0), title="T", unit="m", of="samples")])
    blue = (np.asarray(picture) == (52, 110, 170)).all(axis=2)
    columns = np.flatnonzero(blue.any(axis=0))
    left, right = columns[0], columns[-1] + 1
    middles = [round(left + (number + 0.5) / 5 * (right - left)) for number in range(5)]
    heights = blue[:, middles].sum(axis=0)
    assert heights / heights.max() * 10 == pytest.approx(counts, abs=0.2)


def test_many_things_are_shown_in_percent() -> None:
    axes = _axes([30_000, 70_000], [0, 1, 2], of="pixels")
    assert [bar.get_height() for bar in _bars(axes)] == pytest.approx([30, 70])
    assert axes.get_ylabel() == "% of pixels"


def test_bins_of_equal_ratio_have_equal_widths_on_a_logarithmic_axis() -> None:
    axes = _axes([1] * 30, np.geomspace(0.1, 100, 31).tolist(), logarithmic=True)
    places = axes.transData.transform([(bar.get_x(), 0) for bar in _bars(axes)])[:, 0]
    assert np.diff(places) == pytest.approx(np.diff(places).mean())
    assert {"0.1", "1", "10", "100"} <= set(_tick_texts(axes, "x"))


def _tick_texts(axes: Axes, name: str) -> list[str]:
    """Labels of the ticks that are seen."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    return [axis.get_major_formatter()(value, 0) for value in axis.get_majorticklocs() if low <= value <= high]


def test_few_things_are_counted_in_whole_numbers() -> None:
    assert _tick_texts(_axes([1, 0, 1], np.linspace(0, 30, 4).tolist()), "y") == ["0", "1"]


def test_a_rare_value_is_seen_and_an_empty_bin_is_empty() -> None:
    high, empty, rare = (bar.get_height() for bar in _bars(_axes([10**9, 0, 1], range(4))))
    assert empty == 0
    assert rare == pytest.approx(high / 100)


def test_a_histogram_of_nothing_says_so() -> None:
    axes = _axes([0, 0, 0], range(4))
    assert not _bars(axes)
    assert "no values" in {text.get_text() for text in axes.texts}


@pytest.mark.parametrize(("low", "high"), [(3.0, 4.0), (2.1, 4.9), (0.0301, 0.0302), (11.0, 19.0)])
def test_a_narrow_range_of_ratios_has_ticks(low: float, high: float) -> None:
    """None of 1, 2, 5 times a power of ten lies between."""
    axes = _axes(range(1, 9), np.geomspace(low, high, 9).tolist(), logarithmic=True)
    assert len(set(_tick_texts(axes, "x"))) >= 2


def test_directions_stand_where_they_point() -> None:
    counts = np.zeros((64, 64), int)
    counts[0, 32] = counts[32, 63] = 1000  # up, and to the right
    axes = Figure().add_subplot()
    disc(axes, counts=counts, title="T", note="N")
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    rows, columns = np.nonzero(np.asarray(image.get_array()))
    places = [
        (left + (column + 0.5) / 64 * (right - left), top + (row + 0.5) / 64 * (bottom - top))
        for row, column in zip(rows, columns, strict=True)
    ]
    for place, word in zip(places, ("up", "right"), strict=True):
        assert place == pytest.approx(texts[word], abs=0.1)
    on_the_page = {word: axes.transData.transform(place) for word, place in texts.items() if word != "N"}
    assert on_the_page["up"][1] > on_the_page["down"][1]
    assert on_the_page["right"][0] > on_the_page["left"][0]


def test_panels_stand_in_rows_of_three() -> None:
    draw = partial(histogram, counts=np.array([1, 2]), edges=np.arange(3.0), title="T", unit="m", of="samples")
    sizes = [panels([draw] * number).size for number in (1, 3, 4)]
    assert sizes[0] == sizes[1]
    assert sizes[2] == (sizes[1][0], 2 * sizes[1][1])
