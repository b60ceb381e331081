"""The report, read back with an HTML parser, and its table for a terminal: both against the numbers in the files."""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fastssl import files
from fastssl.cli import main
from fastssl.config import write_config
from fastssl.errors import DataError, MachineError
from fastssl.methods import load_config
from fastssl.metrics.planes import ContourMetrics, DepthMetrics, NormalMetrics
from fastssl.report import summary_table, write_report

_VOID = {"meta", "link", "img", "br"}
_SUMMARY: dict[str, Any] = {
    "steps": 400,
    "throughput": {"pairs_per_s": 32.84, "data_wait_fraction": 0.0187},
    "limited_by": "compute",
    "tasks": {
        "depth": {
            "abs_rel": {"trained": 0.1874, "untrained": 0.6121, "constant": 0.3391},
            "rmse": {"trained": 0.6423, "untrained": 1.9124, "constant": 1.0874},
            "log_rmse": {"trained": 0.2337, "untrained": 0.7021, "constant": 0.3812},
            "delta_1.25": {"trained": 0.7216, "untrained": 0.2203, "constant": 0.4017},
        },
        "normal": {
            "mean": {"trained": 54.31, "untrained": 63.22, "constant": 52.77},
            "median": {"trained": 15.62, "untrained": 60.11, "constant": 54.02},
            "within_11.25": {"trained": 0.3911, "untrained": 0.0314, "constant": 0.1223},
            "within_22.5": {"trained": 0.6244, "untrained": 0.1034, "constant": 0.2217},
            "within_30": {"trained": 0.7166, "untrained": 0.1711, "constant": 0.2612},
        },
        "edge": {
            "f": {"trained": 0.6714, "untrained": 0.2411, "constant": 0.1702},
            "threshold": {"trained": 0.62, "untrained": 0.51, "constant": 0.01},
            "precision": {"trained": 0.6412, "untrained": 0.1633, "constant": 0.0931},
            "recall": {"trained": 0.7048, "untrained": 0.4633, "constant": 1.0},
        },
    },
    "domain": {"conditions": {"layer": "conv4"}, "accuracy": {"trained": 0.4713, "untrained": 0.4083}},
    "neighbours": {
        "conditions": {"layer": "conv4", "statistics": {"not_adapted": "running ones"}},
        "precision_at_1_interval": {"trained": [0.4412, 0.6667], "untrained": [0.2499, 0.5161]},
        "precision_at_1": {"trained": 0.5833, "untrained": 0.3917, "not_adapted": 0.6021},
        "precision_at_5": {"trained": 0.4517, "untrained": 0.2917, "not_adapted": 0.4183},
    },
}
# The shown name of every metric, decimals, and what the stored number is multiplied by.
_SHOWN = {
    "abs_rel": ("Absolute relative error", 3, 1),
    "rmse": ("Root mean square error", 3, 1),
    "log_rmse": ("Root mean square error of log depth", 3, 1),
    "delta_1.25": ("Within 1.25 times the truth", 1, 100),
    "mean": ("Mean angle to the truth", 1, 1),
    "median": ("Median angle to the truth", 1, 1),
    "within_11.25": ("Within 11.25 degrees", 1, 100),
    "within_22.5": ("Within 22.5 degrees", 1, 100),
    "within_30": ("Within 30 degrees", 1, 100),
    "f": ("F-measure at its best threshold", 3, 1),
    "threshold": ("Best threshold", 2, 1),
    "precision": ("Precision at that threshold", 3, 1),
    "recall": ("Recall at that threshold", 3, 1),
    "accuracy": ("Accuracy of a linear domain classifier", 3, 1),
    "precision_at_1": ("Precision at 1", 3, 1),
    "precision_at_5": ("Precision at 5", 3, 1),
}


class Element:
    """A node of the parsed page."""

    def __init__(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    def all(self, tag: str = "", style: str = "") -> list[Element]:
        """The elements below of a tag and a class."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in ("", child.tag) and (not style or style in child.attributes.get("class", "").split()):
                    found.append(child)
                found += child.all(tag, style)
        return found

    @property
    def raw_text(self) -> str:
        return "".join(child if isinstance(child, str) else child.raw_text for child in self.children)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", self.raw_text).strip()


class Page(HTMLParser):
    """Builds the tree and refuses tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def section(self, name: str) -> Element:
        return next(part for part in self.root.all("section") if part.attributes["id"] == name)

    def chart(self, name: str) -> Element:
        return next(chart for chart in self.root.all("figure", "chart") if chart.all("h3")[0].text == name)

    def rows(self) -> dict[str, dict[str, Element]]:
        """The cells of all tables of metrics, by the metric's name and the column's."""
        rows = {}
        for table in self.root.all("table", "metrics"):
            columns = [cell.text for cell in table.all("thead")[0].all("th")[1:]]
            for line in table.all("tr"):
                name = next((child for child in line.all("th")[0].children if isinstance(child, str)), "").strip()
                rows[name] = dict(zip(columns, line.all("td"), strict=False))
        return rows


def _write_run(
    run: Path,
    *,
    metrics: Sequence[Mapping[str, float]] = (),
    summary: Mapping[str, Any] | None = None,
    method: str = "cross_domain",
    overrides: Sequence[str] = (),
) -> Path:
    run.mkdir(exist_ok=True)
    data = ["data.real=/somewhere/shards/photos"]
    if method == "cross_domain":
        data.append("data.synthetic=/somewhere/shards/rooms")
    write_config(load_config("tiny", method=method, overrides=[*data, *overrides]), run / "config.yaml")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if summary is not None:
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def _series(name: str, values: Sequence[float], steps: Sequence[int] = ()) -> list[dict[str, float]]:
    steps = steps or range(10, 10 * len(values) + 1, 10)
    return [{"step": step, name: value} for step, value in zip(steps, values, strict=True)]


def _write_picture(path: Path, seed: int) -> bytes:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with everything that a page can show."""
    names = ["loss/depth", "loss/normal", "loss/edge", "loss/adversarial", "loss/discriminator", "lr"]
    names += ["throughput/pairs_per_s", "throughput/data_wait_fraction", "gpu/power_w"]
    lines = [{"step": step, **{name: 1 / step + place for place, name in enumerate(names)}} for step in (10, 20, 30)]
    folder = _write_run(tmp_path / "demo", metrics=lines, summary=_SUMMARY)
    for seed, name in enumerate(("tasks", "neighbours", *(f"train_{step:08d}" for step in (100, 200, 300, 400, 500)))):
        _write_picture(folder / "samples" / f"{name}.png", seed)
    return folder


def test_every_number_of_the_summary_stands_in_its_row_and_column(run: Path) -> None:
    rows = Page(write_report(run)).rows()
    sections = [*_SUMMARY["tasks"].values(), _SUMMARY["domain"], _SUMMARY["neighbours"]]
    metrics = {name: values for section in sections for name, values in section.items() if name in _SHOWN}
    assert metrics.keys() == _SHOWN.keys()
    for metric, values in metrics.items():
        name, digits, factor = _SHOWN[metric]
        for column, value in values.items():
            words = rows[name][column.replace("_", " ").capitalize()].text
            number = re.match(r"[\d.]+", words)
            assert number is not None
            assert float(number[0]) == pytest.approx(value * factor, abs=0.5 * 10**-digits * (1 + 1e-9))


def test_intervals_stand_below_their_numbers_and_are_explained_where_there_are_some(run: Path) -> None:
    page = Page(write_report(run))
    row = page.rows()["Precision at 1"]
    small = {column: [words.text for words in cell.all("small")] for column, cell in row.items()}
    assert small == {"Trained": ["0.441 to 0.667"], "Untrained": ["0.250 to 0.516"], "Not adapted": []}
    explained = {name: "95 % intervals" in page.section(name).text for name in ("tasks", "domain", "neighbours")}
    assert explained == {"tasks": False, "domain": False, "neighbours": True}
    assert "statistics not adapted: running ones." in page.section("neighbours").text


def test_a_row_of_each_layer_that_the_summary_has(tmp_path: Path) -> None:
    layers = {"conv1": {"within_8": {"trained": 0.25}}, "stem": {"within_8": {"trained": 0.75}}}
    summary = {"matching": {"within_8": {"trained": 0.75}, "layers": layers}}
    rows = Page(write_report(_write_run(tmp_path, summary=summary))).rows()
    assert {name: row["Trained"].text for name, row in rows.items() if row} == {
        "Found within 8 pixels": "0.750",
        "conv1": "0.250",
        "stem": "0.750",
    }


def test_the_best_of_a_line_is_marked_in_words_and_only_where_one_is_best(run: Path) -> None:
    rows = Page(write_report(run)).rows()
    best = {name: [column for column, cell in row.items() if "best" in cell.text] for name, row in rows.items()}
    assert best["Root mean square error"] == ["Trained"]  # lower
    assert best["Mean angle to the truth"] == ["Constant"]
    assert best["Within 22.5 degrees"] == ["Trained"]  # higher
    assert best["Accuracy of a linear domain classifier"] == ["Trained"]  # nearer to 0.5, though not lower
    assert best["Precision at 1"] == ["Not adapted"]
    assert best["Recall at that threshold"] == best["Precision at that threshold"] == best["Best threshold"] == []


def test_key_results_say_honestly_what_was_beaten(run: Path) -> None:
    cards = {card.all("h3")[0].text: card for card in Page(write_report(run)).root.all("div", "card")}
    assert list(cards) == [
        "Depth error, RMS",
        "Normal error, mean",
        "Contour F-measure",
        "Domain accuracy",
        "Neighbours, precision at 1",
        "Neighbours, precision at 5",
    ]
    verdicts = {name: card.all("p", "verdict")[0].text for name, card in cards.items()}
    assert verdicts["Depth error, RMS"].endswith(" better than untrained and constant")
    assert verdicts["Normal error, mean"].endswith(" not better than constant")
    assert verdicts["Neighbours, precision at 1"].endswith(" not better than not adapted")
    assert verdicts["Domain accuracy"].endswith(" better than untrained")
    bars = [float(bar.attributes["style"][6:-1]) for bar in cards["Depth error, RMS"].all("div", "bar")]
    assert bars == pytest.approx([100 * 0.6423 / 1.9124, 100, 100 * 1.0874 / 1.9124], abs=0.05)


def test_what_is_not_finite_is_said_and_never_best(tmp_path: Path) -> None:
    rmse = {"trained": 1.25, "untrained": math.nan, "constant": math.inf}
    same = {"trained": 0.5, "constant": 0.5}
    tasks = {"depth": {"rmse": rmse, "abs_rel": same}, "edge": {"recall": {"trained": math.nan, "constant": 1.0}}}
    page = Page(write_report(_write_run(tmp_path, summary={"tasks": tasks})))
    row = page.rows()["Root mean square error"]
    assert [cell.text for cell in row.values()] == ["1.250✓ best", "not finite", "not finite"]
    for name in ("Absolute relative error", "Recall at that threshold"):
        assert not any("best" in cell.text for cell in page.rows()[name].values())
    assert page.root.all("p", "verdict")[0].text.endswith(" better than untrained and constant")


def test_a_metric_that_the_evaluation_adds_must_get_a_name() -> None:
    depth, normal, edge = DepthMetrics(), NormalMetrics(), ContourMetrics()
    plane, valid = torch.full((1, 1, 8, 8), 0.5), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    depth.add(plane, plane, valid)
    normal.add(torch.eye(3)[:1, :, None, None].expand(1, 3, 8, 8), torch.ones(1, 3, 8, 8) / 3**0.5, valid)
    edge.add(plane, plane)
    measured = {name for metrics in (depth, normal, edge) for name in metrics.result()}
    assert measured | {"accuracy", "precision_at_1", "precision_at_5"} == _SHOWN.keys()


def test_a_curve_shows_its_series_in_its_unit_and_colour(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "loss/depth": 7.0, "throughput/pairs_per_s": 90.0, "throughput/data_wait_fraction": 0.5},
        {"step": 20, "throughput/pairs_per_s": 95.0, "throughput/data_wait_fraction": 0.25},
    ]
    page = Page(write_report(_write_run(tmp_path, metrics=lines)))
    shown = {
        chart.all("h3")[0].text: [reading.text for reading in chart.all("g", "readings")[0].all("title")]
        for chart in page.root.all("figure", "chart")
    }
    assert shown == {
        "Depth loss": ["step 10: 7"],
        "Throughput": ["step 10: 90", "step 20: 95"],
        "Waiting for data": ["step 10: 50", "step 20: 25"],
    }
    assert page.chart("Depth loss").attributes["class"] == "chart depth"
    assert page.chart("Waiting for data").all("small")[0].text == "% of the time"
    assert page.chart("Throughput").all("g", "ytick_1")[0].text == "0"  # the lowest label of the axis


def test_the_adversarial_losses_show_where_the_discriminator_is_undecided(tmp_path: Path) -> None:
    # D(z) = 1/2 costs -log(1/2) for the backbone, and that twice, once per domain, for D.
    undecided = {"loss/adversarial": 2 * math.log(2), "loss/discriminator": 0.5 * 2 * math.log(2)}
    lines = [{"step": 5, "loss/adversarial": 1.0, "loss/discriminator": 0.2}, {"step": 10, **undecided}]
    run = _write_run(tmp_path, metrics=lines, overrides=["loss.adversarial_weight=2", "loss.discriminator_weight=0.5"])
    page = Page(write_report(run))
    for name in ("Adversarial loss", "Discriminator loss"):
        (line,) = page.chart(name).all("g", "reference")[0].all("path")
        (last,) = page.chart(name).all("g", "curve")[0].all("use")
        assert line.attributes["d"].split()[2] == last.attributes["y"]
        assert "chance" in page.chart(name).all("small")[0].text


def test_words_of_a_chart_stay_words_and_belong_to_their_drawing(tmp_path: Path) -> None:
    series = 'loss/<b>_"&'
    page = Page(write_report(_write_run(tmp_path, metrics=_series(series, [3.0, math.nan, 2.0]))))
    chart = page.chart('<b> "& loss')
    (drawing,) = chart.all("svg")
    title, words = drawing.all("title")[0], drawing.all("desc")[0]
    assert drawing.attributes["role"] == "img"
    ids = [title.attributes["id"], words.attributes["id"]]
    assert drawing.attributes["aria-labelledby"].split() == ids
    assert title.text == '<b> "& loss'
    assert words.text == "3 values from step 10 to 30; lowest 2, highest 3, last 2, 1 not finite."
    assert chart.all("b")[0].text == "2"


def test_every_colour_of_a_chart_is_one_of_the_page_s_style(run: Path) -> None:
    """In light and in dark; a drawing names no colour itself."""
    page = Page(write_report(run))
    (style,) = page.root.all("style")
    light, dark = style.text.split("@media (prefers-color-scheme: dark)")[:2]
    drawn = [element.attributes.get("style", "") for svg in page.root.all("svg") for element in svg.all()]
    names = set(re.findall(r"var\((--[a-z]+)\)", " ".join(drawn)))
    assert names == {"--line", "--muted", "--grid", "--other"}
    assert not re.search("#|rgb", " ".join(drawn))
    for name in names - {"--line"}:  # of which there is one for each kind of curve
        assert f"{name}: #" in light
        assert f"{name}: #" in dark
    for chart in page.root.all("figure", "chart"):
        _, colour = chart.attributes["class"].split()
        assert f".{colour} {{ --line: var(--{colour}); }}" in style.text


def test_the_page_is_little_larger_than_its_pictures(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    many = [lines[0] | {"step": step} for step in range(1, 5001)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    pictures = sum(path.stat().st_size for path in (run / "samples").iterdir())
    assert write_report(run).stat().st_size < 4 / 3 * pictures + 500_000


def test_pictures_are_the_files_of_the_run_with_words_for_those_who_cannot_see_them(run: Path) -> None:
    page = Page(write_report(run))
    names = {"tasks": ["tasks"], "neighbours": ["neighbours"], "progress": ["train_00000100", "train_00000300"]}
    names["progress"].append("train_00000500")  # first, middle, last
    for section, names_there in names.items():
        pictures = page.section(section).all("img")
        expected = [(run / "samples" / f"{name}.png").read_bytes() for name in names_there]
        assert [base64.b64decode(picture.attributes["src"].partition(",")[2]) for picture in pictures] == expected
        assert all(len(picture.attributes["alt"]) > 20 for picture in pictures)
        assert all((picture.attributes["width"], picture.attributes["height"]) == ("30", "20") for picture in pictures)
    assert [part.text for part in page.section("progress").all("h3")] == ["Step 100", "Step 300", "Step 500"]


def test_nothing_is_asked_of_the_network_and_nothing_is_run(run: Path) -> None:
    page = Page(write_report(run))
    assert not re.search(r"https?://|url\(|@import|<script", page.source)
    for element in page.root.all():
        for name in ("src", "href", "srcset", "data", "action"):
            assert re.match(r"#|data:|$", element.attributes.get(name, ""))
        assert not [name for name in element.attributes if name.startswith("on")]


def test_references_within_the_page_have_their_target_once(run: Path) -> None:
    page = Page(write_report(run))
    ids = [element.attributes["id"] for element in page.root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    wanted = [link.attributes["href"][1:] for link in page.root.all("a")]
    for chart in page.root.all("svg"):
        wanted += chart.attributes["aria-labelledby"].split()
    assert len(wanted) > 20
    assert set(wanted) <= set(ids)


def test_every_setting_is_listed_with_its_value(run: Path) -> None:
    (details,) = Page(write_report(run)).root.all("details")
    listed = {line.all("th")[0].text: line.all("td")[0].text for line in details.all("tr")}
    stored = yaml.safe_load((run / "config.yaml").read_text())
    del stored["preset"], stored["method"]
    assert len(listed) == sum(len(section) for section in stored.values())
    for section, values in stored.items():
        for name, value in values.items():
            shown = yaml.safe_load(listed[f"{section}.{name}"])
            # A dataset alone is its path, and nothing is a dash.
            assert value in (shown, {str(shown): 1.0}) or (not value and shown == "\N{EN DASH}")
    assert listed["train.amp"] == "false"  # as `--set` takes it


def test_the_head_says_what_was_trained(run: Path) -> None:
    page = Page(write_report(run))
    header = page.root.all("header")[0].text
    for words in ("demo", "400 steps", "shards/rooms", "shards/photos", "conv5", "tiny", "16 rendered, 16 real"):
        assert words in header
    assert "32.8 pairs/s" in page.section("speed").text
    assert "1.9 %" in page.section("speed").text
    assert "limited by compute" in page.section("speed").text
    assert "conv4" in page.section("domain").text
    assert "conv4" in page.section("neighbours").text


def test_what_is_not_measured_names_the_command_that_measures_it(tmp_path: Path) -> None:
    run = _write_run(tmp_path / "my run", overrides=["model.adapted_layer=none"])
    (run / "metrics.jsonl").unlink()
    page = Page(write_report(run))
    commands = {
        section: [command.text for command in page.section(section).all("code", "command")]
        for section in ("tasks", "domain", "neighbours")
    }
    for section, found in commands.items():
        assert found[0].startswith(f"fastssl eval {section} '{run}' --")
        assert "not measured yet" in page.section(section).text.lower()
    needed = {
        "domain": " --synthetic HELD_OUT_RENDERS --real HELD_OUT_PHOTOS",
        "voc-cls": " --devkit DEVKIT",
        "voc-det": " --devkit DEVKIT --train-proposals TRAIN_PROPOSALS --test-proposals TEST_PROPOSALS",
        "normals": " --frames FRAMES --truth TRUTH --convention CONVENTION",
    }
    for section, options in needed.items():
        (told,) = page.section(section).all("code", "command")
        assert told.text == f"fastssl eval {section} '{run}'{options}"
    header = page.root.all("header")[0]
    assert header.all("code", "command")[0].text == f"fastssl train --out '{run}' --resume"
    assert "No layer was adapted" in header.text
    assert "16 real" not in header.text
    assert not page.root.all("img")
    assert not page.root.all("figure", "chart")
    assert "Nothing is logged yet" in page.section("curves").text


def test_a_page_speaks_of_nothing_that_the_run_has_not(tmp_path: Path) -> None:
    """A method without planes, adaptation, weights of losses or rendered images."""
    metrics = [{"step": 10, "loss/rotation": 1.5, "throughput/images_per_s": 90.0}]
    summary = {
        "steps": 10,
        "throughput": {"images_per_s": 88.0, "data_wait_fraction": 0.1},
        "neighbours": {"conditions": {"layer": "conv5"}, "precision_at_1": {"trained": 0.5, "untrained": 0.25}},
    }
    run = _write_run(tmp_path / "run", metrics=metrics, summary=summary, method="rotation")
    _write_picture(run / "samples" / "train_00000010.png", 0)
    page = Page(write_report(run))
    parts = [*page.root.all("header"), *page.root.all("section")]
    words = " ".join(part.text for part in parts if part.attributes.get("id") != "settings").lower()
    for foreign in ("constant", "adapt", "weighted", "adversar", "depth", "pair", "ground truth"):
        assert foreign not in words
    for own in ("rotation loss", "chance", "untrained", "precision at 1", "88.0 images/s", "turned by 90"):
        assert own in words
    sections = [section.attributes["id"] for section in page.root.all("section")]
    evaluations = ["domain", "neighbours", "matching", "knn", "linear", "voc-cls", "voc-det", "normals"]
    assert sections == ["results", "curves", *evaluations, "progress", "speed", "settings"]
    (command,) = page.section("domain").all("code", "command")  # with what the run cannot give
    assert "--fit-synthetic TRAINING_RENDERS" in command.text
    assert "--fit-real" not in command.text


def test_a_network_is_no_rival_of_itself_with_other_statistics(tmp_path: Path) -> None:
    rmse = {"trained": 0.9, "trained_reestimated": 0.8, "untrained": 2.0, "constant": 1.0}
    page = Page(write_report(_write_run(tmp_path / "run", summary={"steps": 10, "tasks": {"depth": {"rmse": rmse}}})))
    (verdict,) = page.root.all("p", "verdict")
    assert verdict.text.endswith(" better than untrained and constant")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"step": 20}, "of step 20, and the run has gone on to step 30"),
        ({"step": 10, "checkpoint": "best.pt"}, "of step 10 (best.pt), and the run has gone on to step 30"),
        ({"step": 30}, ""),
        ({"step": 30, "checkpoint": "best.pt"}, ""),
        ({}, ""),  # of an older version
    ],
)
def test_numbers_of_an_earlier_step_are_told_as_such(run: Path, told: dict[str, Any], words: str) -> None:
    domain = _SUMMARY["domain"] | {"conditions": {"layer": "conv4", **told}}
    for step in (10, 20, 30):
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / f"step_{step:08d}.pt").touch()
    (run / "summary.json").write_text(json.dumps(_SUMMARY | {"domain": domain}))
    page, text = Page(write_report(run)), summary_table(run)
    commands = page.section("domain").all("code", "command")
    assert [command.text.split()[:3] for command in commands] == ([["fastssl", "eval", "domain"]] if words else [])
    for place in (page.section("results").text, page.section("domain").text, text):
        assert words in place
        assert bool(words) == ("gone on" in place)
    assert "gone on" not in page.section("tasks").text
    assert not words or f"The numbers of domain are {words}.\n" in text


def test_published_figures_stand_below_what_was_measured_and_apart_from_it(tmp_path: Path) -> None:
    measured = {"voc-cls": {"conditions": {"images": 4952}, "mean_ap": {"trained": 0.5, "untrained": 0.25}}}
    page = Page(write_report(_write_run(tmp_path / "run", summary={"steps": 10} | measured)))
    ours, *theirs = page.section("voc-cls").all("table", "metrics")
    assert "68.0" not in ours.text
    assert "50.0" not in "".join(table.text for table in theirs)
    tables = page.section("voc-cls").all("details", "published")
    assert [table.all("summary")[0].text for table in tables] == [
        "Published by others, on other data: The ablation of Ren & Lee, CVPR 2018",
        "Published by others, on other data: Systems that the paper compares, as far as their figures are known here",
    ]
    assert "poster: VOC07 cls, mAP %" in tables[0].text
    assert tables[0].text.endswith("fc6 66.9 conv5 more data 68.0")
    assert not page.section("voc-det").all("details", "published"), "it was not measured"


def test_a_page_speaks_of_all_that_the_run_has(run: Path) -> None:
    words = Page(write_report(run)).root.text
    for own in (
        "Losses are weighted as in the objective",
        "Constant is the best prediction that does not look at the image",
        "Not adapted is another run, measured beside this one",
        "a pair being one rendered image and one photo",
    ):
        assert own in words


def test_pairs_without_photos_are_not_said_to_have_some(tmp_path: Path) -> None:
    speed = {"throughput": {"pairs_per_s": 9.0, "data_wait_fraction": 0.1}}
    page = Page(write_report(_write_run(tmp_path, summary=speed, overrides=["model.adapted_layer=none"])))
    assert "9.0 pairs/s. The step" in page.section("speed").text


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    page = Page(write_report(_write_run(tmp_path, metrics=_series("loss/depth", [3.0, 2.0]))))
    assert "has not ended; 20 steps" in page.root.all("header")[0].text


def test_text_of_the_run_stays_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)> & \"$name'"
    summary = _SUMMARY | {"limited_by": evil, "domain": {"conditions": {"layer": evil}, "accuracy": {"trained": 0.5}}}
    overrides = [f"data.synthetic={json.dumps(evil)}", f"data.real={json.dumps(evil)}"]
    page = Page(write_report(_write_run(tmp_path / evil, summary=summary, overrides=overrides)))
    assert page.root.all("h1")[0].text == evil
    assert evil in page.root.all("header")[0].all("p", "lead")[0].text
    assert evil in page.section("speed").text
    assert evil in page.section("domain").text
    assert evil in page.section("settings").text
    assert not page.root.all("img")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match="holds no run"):
            write_report(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"loss/depth": 1.0}\n'),
        ("metrics.jsonl", '{"step": 1, "lr": "small"}\n'),
        ("metrics.jsonl", "[1, 2]\n"),
        ("summary.json", "[]"),
        ("summary.json", '{"tasks": {"depth": {"rmse": 0.5}}}'),
        ("config.yaml", "preset: tiny\nmodel: {widht: 2}\n"),
    ],
)
def test_a_damaged_file_is_named_and_an_older_report_stays(run: Path, name: str, content: str) -> None:
    before = write_report(run).read_bytes()
    (run / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(str(run / name))):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.partial"))


@pytest.mark.parametrize(
    ("name", "tear", "words"),
    [
        ("metrics.jsonl", lambda whole: whole[:60] + bytes(200) + whole[60:], "metrics.jsonl has 1 lines"),
        ("metrics.jsonl", lambda whole: b"\xff\n" + whole + b'{"step": 4', "metrics.jsonl has 1 lines"),
        ("metrics.jsonl", lambda whole: bytes(len(whole)), "metrics.jsonl has 1 lines"),
        ("metrics.jsonl", lambda whole: whole + bytes(500), "metrics.jsonl has 1 lines"),
        ("summary.json", lambda whole: whole[: len(whole) // 2], "summary.json is not whole"),
        ("summary.json", lambda whole: b"", "summary.json is not whole"),
        ("summary.json", lambda whole: bytes(len(whole)), "summary.json is not whole"),
        ("samples/tasks.png", lambda whole: whole[:-40], "samples/tasks.png is no whole picture"),
        ("samples/train_00000100.png", lambda whole: b"", "samples/train_00000100.png is no whole picture"),
        ("samples/neighbours.png", lambda whole: b"no picture", "samples/neighbours.png is no whole picture"),
    ],
)
def test_torn_files_are_read_as_far_as_they_are_whole(
    run: Path, caplog: pytest.LogCaptureFixture, name: str, tear: Callable[[bytes], bytes], words: str
) -> None:
    """All that the other files say is on the page; what is torn is named there and in a warning."""
    before = Page(write_report(run))
    (run / name).write_bytes(tear((run / name).read_bytes()))
    page = Page(write_report(run))
    assert words in page.root.text
    assert words in caplog.text
    from_summary, from_metrics = {"domain", "tasks", "neighbours", "speed"}, {"curves", "speed"}
    lost = {"metrics.jsonl": from_metrics, "summary.json": from_summary}.get(name, set())
    for section in {"curves", "domain", "settings", "speed"} - lost:
        assert page.section(section).text == before.section(section).text
    assert bool(summary_table(run)) == (name != "summary.json")


def test_gradients_on_the_backbone_are_drawn_behind_the_losses(tmp_path: Path) -> None:
    losses = _series("loss/edge", [4.0, 3.0, 2.0])
    losses[1]["gradient/edge"] = 0.25
    losses[2]["gradient/edge"] = 0.5
    page = Page(write_report(_write_run(tmp_path / "run", metrics=losses)))
    loss, gradient = page.section("curves").all("figure", "chart")
    assert loss.text.startswith("Contour loss")
    assert gradient.text.startswith("Contour gradient")
    assert "2 values from step 20 to 30; lowest 0.25, highest 0.5, last 0.5" in gradient.text
    assert "norm on the backbone" in gradient.text


def test_whole_lines_beside_torn_ones_are_drawn(tmp_path: Path) -> None:
    run = _write_run(tmp_path / "run", metrics=_series("loss/depth", [4.0, 3.0, 2.0]))
    first, second, third = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(first + second[:9] + bytes(100) + b"\n" + third)
    chart = Page(write_report(run)).section("curves").text
    assert "2 values from step 10 to 30; lowest 2, highest 4, last 2" in chart


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_report_that_cannot_be_written_is_the_machine_s_fault(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = write_report(run).read_bytes()

    def fails(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "_StoredEarly", fails)
    with pytest.raises(MachineError, match=r"report\.html"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "samples/tasks.png"])
def test_a_file_that_the_machine_does_not_give_is_not_called_torn(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    true = Path.open

    def fails(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == run / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return true(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(MachineError, match=re.escape(name)):
        write_report(run)


def test_names_of_any_bytes_are_spelt_out(tmp_path: Path) -> None:
    """An emoji, a byte that is not UTF-8, and half an emoji."""
    summary = {**_SUMMARY, "limited_by": "half \ud83d"}
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x8d\x8e")
    run = _write_run(tmp_path / name, summary=summary)
    page = Page(write_report(run))
    assert "caf\\xe9 \U0001f34e" in page.root.text
    assert "half \\ud83d" in page.section("speed").text


def test_secrets_of_addresses_are_not_shown(tmp_path: Path) -> None:
    run = _write_run(tmp_path / "run", overrides=["data.real=https://ann:hunter2@host/photos?X-Amz-Signature=hunter2"])
    text = write_report(run).read_text()
    assert "https://***@host/photos?***" in text
    assert "hunter2" not in text


def test_what_has_no_value_is_said(tmp_path: Path) -> None:
    nothing = {"trained": None, "untrained": None}
    summary = {
        "tasks": {"depth": {"rmse": nothing}, "edge": {"f": {"trained": 0.5, "untrained": None}}},
        "neighbours": {"precision_at_1": {"trained": 1.0}, "precision_at_5": nothing},
    }
    run = _write_run(tmp_path / "run", summary=summary)
    page = Page(write_report(run))
    assert "Without a value" in page.section("tasks").text
    assert page.section("tasks").text.endswith(": Depth: Root mean square error.")
    assert page.section("neighbours").text.endswith(": Precision at 5.")
    assert _cells(summary_table(run)).keys() >= {"Contour F-measure (higher is better)"}


def test_the_same_run_gives_the_same_page_and_nothing_else_changes(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before | {run / "report.html": first}


def _cells(table: str) -> dict[str, list[str]]:
    """The cells of the lines of a table in text, by the first one; two spaces or more separate them."""
    return {name: cells for name, *cells in (re.split(r"\s{2,}", line) for line in table.splitlines())}


def test_the_table_for_a_terminal_holds_the_key_results(run: Path) -> None:
    assert _cells(summary_table(run)) == {
        "": ["trained", "untrained", "constant", "not adapted"],
        "Depth error, RMS (m, lower is better)": ["0.642", "1.912", "1.087", "-"],
        "Normal error, mean (degrees, lower is better)": ["54.3", "63.2", "52.8", "-"],
        "Contour F-measure (higher is better)": ["0.671", "0.241", "0.170", "-"],
        "Domain accuracy (nearest to 0.5 is best)": ["0.471", "0.408", "-", "-"],
        "Neighbours, precision at 1 (higher is better)": ["0.583", "0.392", "-", "0.602"],
        "Neighbours, precision at 5 (higher is better)": ["0.452", "0.292", "-", "0.418"],
        "32.8 pairs/s, waiting for data 1.9 % of the time, limited by compute": [],
    }


def test_the_table_is_aligned_and_fits_100_columns(tmp_path: Path) -> None:
    values = {"trained": math.nan, "untrained": math.inf, "constant": 123456.7891, "not_adapted": -math.inf}
    summary = {"tasks": {"normal": {"mean": values}, "edge": {"f": {"trained": 0.5}}}}
    head, *lines = summary_table(_write_run(tmp_path, summary=summary)).splitlines()
    assert _cells("\n".join(lines)) == {
        "Normal error, mean (degrees, lower is better)": ["not finite", "not finite", "123456.8", "not finite"],
        "Contour F-measure (higher is better)": ["0.500", "-", "-", "-"],
    }
    ends = [[place.end() for place in re.finditer(r"\S(?=  |$)", line)] for line in (head, *lines)]
    assert ends[0] == ends[1][1:] == ends[2][1:]
    assert len(head) == ends[0][-1] <= 100


def test_the_table_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    assert summary_table(_write_run(tmp_path)) == ""
    domain = {"conditions": {"layer": "fc6"}, "accuracy": {"trained": 0.5, "untrained": 1}}
    _write_run(tmp_path, summary={"domain": domain})
    assert _cells(summary_table(tmp_path)) == {
        "": ["trained", "untrained"],
        "Domain accuracy (nearest to 0.5 is best)": ["0.500", "1.000"],
    }
    _write_run(tmp_path, summary={key: _SUMMARY[key] for key in ("steps", "throughput", "limited_by")})
    assert summary_table(tmp_path) == "32.8 pairs/s, waiting for data 1.9 % of the time, limited by compute\n"


def test_the_command_prints_the_table_and_says_where_the_page_is(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastssl", "report", str(run)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert out == summary_table(run)
    assert str(run / "report.html") in err
    assert (run / "report.html").is_file()
