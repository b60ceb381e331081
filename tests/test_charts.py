"""Figures, read back as XML: curves against their own axes, by hand, and by what a reader of the axes would see.
And histograms, read back as pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastssl.charts import Reference, histogram, line_chart


def _drawn(
    values: Sequence[float],
    steps: Sequence[float] = (),
    *,
    from_zero: bool = False,
    reference: Reference | None = None,
) -> Element:
    steps = steps or range(10, 10 * len(values) + 1, 10)
    points = list(zip(steps, values, strict=True))
    return fromstring(line_chart(points, key="k", name="Loss", unit="nats", from_zero=from_zero, reference=reference))


def _styled(chart: Element, tag: str, style: str) -> list[Element]:
    return [element for element in chart.iter(tag) if element.get("class") == style]


def _words(chart: Element, tag: str) -> str:
    return "".join(next(chart.iter(tag)).itertext())


def _places(chart: Element) -> list[list[tuple[float, float]]]:
    """The corners of every piece of the curve, in the units of the view box."""
    pieces = []
    for line in _styled(chart, "polyline", "curve"):
        pairs = [pair.split(",") for pair in line.attrib["points"].split()]
        pieces.append([(float(x), float(y)) for x, y in pairs])
    return pieces


def _axis(chart: Element, name: str) -> list[tuple[float, float]]:
    """Value and place of every tick label of an axis."""
    anchor, shift = {"x": ("middle", 0), "y": ("end", 4)}[name]  # labels stand 4 below the middle of their tick
    labels = [label for label in chart.iter("text") if label.get("text-anchor") == anchor and label.text != "step"]
    return [(float(str(label.text).replace("k", "e3")), float(label.attrib[name]) - shift) for label in labels]


def _read_off(ticks: Sequence[tuple[float, float]], place: float, *, log: bool = False) -> float:
    """What a reader of the chart takes a place on an axis for, by its first and last tick."""
    (low, start), (high, end) = ticks[0], ticks[-1]
    fraction = (place - start) / (end - start)
    return low * (high / low) ** fraction if log else low + fraction * (high - low)


def test_a_curve_of_three_points_by_hand() -> None:
    chart = _drawn([1, 3, 2], steps=[10, 20, 40])
    # The plot reaches from 52 to 348 across, steps 0 to 40, and from 158 up to 8, losses 1 to 3.
    assert _places(chart) == [[(126.0, 158.0), (200.0, 8.0), (348.0, 83.0)]]
    assert [value for value, _ in _axis(chart, "y")] == [1, 1.5, 2, 2.5, 3]
    assert [value for value, _ in _axis(chart, "x")] == [0, 10, 20, 30, 40]
    assert _words(chart, "b") == "2"
    readings = [_words(band, "title") for band in _styled(chart, "rect", "reading")]
    assert readings == ["step 10: 1", "step 20: 3", "step 40: 2"]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(2**-20, 2**20, width=32) | st.floats(-1000, 1000, width=32), min_size=2, max_size=8),
    first=st.integers(1, 10**6),
)
def test_a_reader_of_the_axes_gets_the_values_back(values: list[float], first: int) -> None:
    steps = [first * number for number in range(1, len(values) + 1)]
    chart = _drawn(values, steps)
    across, down = _axis(chart, "x"), _axis(chart, "y")
    log = "logarithmic" in _words(chart, "small")
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
    chart = _drawn([1e-3, 1e-4, 1e-5])
    (piece,) = _places(chart)
    assert [y for _, y in piece] == [8.0, 83.0, 158.0]
    assert [label.text for label in list(chart.iter("text"))[:3]] == ["1e-5", "0.0001", "0.001"]
    assert "logarithmic" not in _words(_drawn([49.0, 1.0]), "small")
    assert "logarithmic" in _words(_drawn([50.0, 1.0]), "small")


def test_an_axis_from_zero_is_never_logarithmic() -> None:
    chart = _drawn([90.0, 9000.0], from_zero=True)
    assert _axis(chart, "y")[0] == (0, 158)
    assert "logarithmic" not in _words(chart, "small")
    assert _axis(_drawn([90.0, 100.0]), "y")[0][0] == 90


def test_values_that_are_not_finite_leave_a_gap() -> None:
    chart = _drawn([1.0, math.nan, 2.0, 3.0, math.inf, -math.inf, 2.0])
    assert [len(piece) for piece in _places(chart)] == [1, 2, 1]
    assert "3 not finite" in _words(chart, "desc")
    assert len(_styled(chart, "circle", "dot")) == 3  # a piece of one point has no line to be seen by


@pytest.mark.parametrize("value", [0.25, 0.0, -3.0])
def test_one_point_is_a_dot_inside_the_axes(value: float) -> None:
    chart = _drawn([value], steps=[1])
    (dot,) = _styled(chart, "circle", "dot")
    assert float(dot.attrib["cx"]) == 348
    assert [step for step, _ in _axis(chart, "x")] == [0, 1]  # there is no half step
    assert _read_off(_axis(chart, "y"), float(dot.attrib["cy"])) == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("values", [[math.nan, math.inf], []])
def test_a_series_without_any_finite_value_says_so(values: list[float]) -> None:
    chart = _drawn(values)
    assert _words(chart, "figcaption") == "Lossno finite value"
    assert not list(chart.iter("svg"))


@pytest.mark.parametrize("value", [5.0, 2.5, -40.0])
def test_a_reference_is_a_line_at_its_value_and_inside_the_axes(value: float) -> None:
    chart = _drawn([2.0, 3.0], reference=Reference(value, "chance"))
    (line,) = _styled(chart, "line", "reference")
    assert line.attrib["y1"] == line.attrib["y2"]
    assert 8 <= float(line.attrib["y1"]) <= 158
    assert _read_off(_axis(chart, "y"), float(line.attrib["y1"])) == pytest.approx(value, abs=0.1)
    assert "dashed: chance" in _words(chart, "small")
    assert not _styled(_drawn([2.0, 3.0]), "line", "reference")


def test_a_long_series_is_drawn_by_the_means_of_neighbouring_points() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 1000)
    chart = _drawn(values.tolist())
    (piece,) = _places(chart)
    ticks = _axis(chart, "y")
    seen = [_read_off(ticks, y) for _, y in piece]
    assert seen == pytest.approx(values.reshape(200, 5).mean(axis=1).tolist(), abs=0.002)
    assert float(_words(chart, "b")) == pytest.approx(values[-1], abs=0.001)


def test_words_stay_words_and_belong_to_their_drawing() -> None:
    points, reference = [(1.0, 2.0), (2.0, 3.0)], Reference(2.5, "a < b")
    text = line_chart(points, key="loss-x", name="<b> & co", unit="m/s & up", colour="depth", reference=reference)
    chart = fromstring(text)
    assert chart.get("class") == "chart depth"
    assert _words(chart, "h3") == _words(chart, "title") == "<b> & co"
    assert _words(chart, "small") == "m/s & up, dashed: a < b"
    (drawing,) = chart.iter("svg")
    ids = [element.attrib["id"] for element in chart.iter() if "id" in element.attrib]
    assert drawing.attrib["aria-labelledby"].split() == ids == ["loss-x-title", "loss-x-words"]


# Histograms as pictures


def _bars(picture: Image.Image) -> NDArray[np.bool_]:
    """(columns, rows): where bars are."""
    return (np.asarray(picture) == (52, 110, 170)).all(axis=2).T


def _texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[float, float], str]]:
    written = list[tuple[tuple[float, float], str]]()
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, **others: Any) -> None:
        written.append((xy, text))
        draw(self, xy, text, **others)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def _axis_of(texts: list[tuple[tuple[float, float], str]], *, of: int) -> dict[float, float]:
    """Numbers that stand at one height (of=0) or one side (of=1), by their place."""
    places = [(xy, text) for xy, text in texts if text.replace(".", "").isdigit()]
    floor = max(xy[1] for xy, _ in places)
    return {float(text): xy[of] for xy, text in places if (xy[1] == floor) == (of == 0)}


def test_bars_reach_as_high_as_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch)
    counts = np.array([3, 0, 7, 10, 1])
    bars = _bars(histogram(counts, np.linspace(0, 5, 6), title="T", unit="m", of="samples", note="N"))
    x, y = _axis_of(texts, of=0), _axis_of(texts, of=1)
    assert {"T", "m", "samples", "N"} <= {text for _, text in texts}
    for number, count in enumerate(counts):
        column = bars[round(x[0] + (number + 0.5) / 5 * (x[5] - x[0]))]
        assert abs(column.sum() / (y[0] - y[10]) * 10 - count) < 0.2


def test_many_things_are_shown_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch)
    counts = np.array([30_000, 70_000])
    bars = _bars(histogram(counts, np.array([0.0, 1, 2]), title="T", unit="m", of="pixels"))
    x, y = _axis_of(texts, of=0), _axis_of(texts, of=1)
    assert "% of pixels" in {text for _, text in texts}
    for place, fraction in ((0.5, 30), (1.5, 70)):
        column = bars[round(x[0] + place / 2 * (x[2] - x[0]))]
        assert abs(column.sum() / (y[0] - y[80]) * 80 - fraction) < 0.5


def test_bins_of_equal_ratio_get_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch)
    counts = np.zeros(30, int)
    counts[10] = 1  # from 1 to 10 ** 0.1
    bars = _bars(histogram(counts, np.geomspace(0.1, 100, 31), title="T", unit="m", of="samples"))
    x = _axis_of(texts, of=0)
    assert x[1] - x[0.1] == pytest.approx(x[10] - x[1], abs=2)
    columns = np.flatnonzero(bars.any(axis=1))
    assert columns[0] == pytest.approx(x[1], abs=2)
    assert columns[-1] + 1 == pytest.approx(x[1] + (x[10] - x[1]) / 10, abs=2.5)


def test_few_things_are_counted_in_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch)
    histogram(np.array([1, 0, 1]), np.linspace(0, 30, 4), title="T", unit="m", of="samples")
    assert set(_axis_of(texts, of=1)) == {0, 1}


def test_a_rare_value_is_seen_and_an_empty_bin_is_empty() -> None:
    bars = _bars(histogram(np.array([10**9, 0, 1]), np.linspace(0, 3, 4), title="T", unit="m", of="pixels"))
    columns = bars.any(axis=1)
    assert columns[46 + 250 : 46 + 300].all()
    assert not columns[46 + 110 : 46 + 200].any()


def test_a_histogram_of_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch)
    bars = _bars(histogram(np.zeros(3, int), np.linspace(0, 3, 4), title="T", unit="m", of="pixels"))
    assert not bars.any()
    assert "no values" in {text for _, text in texts}


@pytest.mark.parametrize(("low", "high"), [(3.0, 4.0), (2.1, 4.9), (0.0301, 0.0302), (11.0, 19.0)])
def test_a_narrow_range_of_ratios_has_ticks(low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of 1, 2, 5 times a power of ten lies between."""
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, **how: (written.append(text), draw(self, at, text, **how))
    )
    histogram(np.arange(1, 9), np.geomspace(low, high, 9), title="Depth", unit="m", of="pixels", note="")
    ticks = [float(text) for text in written if text.replace(".", "").isdecimal() and low <= float(text) <= high]
    assert len(ticks) >= 2
