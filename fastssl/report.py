"""The report of a run: one HTML page that needs nothing but itself.

It shows what training and evaluation left in the run folder and computes nothing anew, so it needs neither torch nor
DALI. The page's frame and style are in `report.html`; here its parts are filled in: charts as SVG, pictures as data
URIs, numbers as tables. All text that comes from the run is escaped.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple

from PIL import Image
from pydantic import BaseModel

from fastssl import __version__
from fastssl.config import Config, read_config
from fastssl.errors import DataError
from fastssl.telemetry import read_metrics

_Point = tuple[float, float]
_Numbers = Mapping[str, float]


class _Metric(NamedTuple):
    """How a number is shown: its name, unit and decimals, and which values are good ones."""

    name: str
    unit: str
    better: Literal["lower", "higher", "near 0.5", ""]
    digits: int = 3
    factor: float = 1


class _Curve(NamedTuple):
    """How a series of `metrics.jsonl` is shown."""

    metric: str
    name: str
    unit: str = "weighted"
    colour: str = "plain"
    factor: float = 1
    from_zero: bool = False


_PIXELS = "% of pixels"
_TASK_METRICS = {
    "depth": {
        "rmse": _Metric("Root mean square error", "m", "lower"),
        "log_rmse": _Metric("Root mean square error of log depth", "", "lower"),
        "abs_rel": _Metric("Absolute relative error", "", "lower"),
        "delta_1.25": _Metric("Within a factor of 1.25 of the truth", _PIXELS, "higher", 1, 100),
    },
    "normal": {
        "mean": _Metric("Mean angle to the truth", "degrees", "lower", 1),
        "median": _Metric("Median angle to the truth", "degrees", "lower", 1),
        "within_11.25": _Metric("Within 11.25 degrees", _PIXELS, "higher", 1, 100),
        "within_22.5": _Metric("Within 22.5 degrees", _PIXELS, "higher", 1, 100),
        "within_30": _Metric("Within 30 degrees", _PIXELS, "higher", 1, 100),
    },
    "edge": {
        "f": _Metric("F-measure at the best threshold", "", "higher"),
        # Neither of these is better by itself: marking every pixel has a recall of 1.
        "precision": _Metric("Precision there", "", ""),
        "recall": _Metric("Recall there", "", ""),
        "threshold": _Metric("That threshold", "", "", 2),
    },
}
_DOMAIN_METRICS = {"accuracy": _Metric("Accuracy of a linear domain classifier", "", "near 0.5")}
_NEIGHBOUR_METRICS = {
    "precision_at_1": _Metric("Precision at 1", "", "higher"),
    "precision_at_5": _Metric("Precision at 5", "", "higher"),
}
_KEY_RESULTS = {
    ("tasks", "depth", "rmse"): _Metric("Depth error, RMS", "m", "lower"),
    ("tasks", "normal", "mean"): _Metric("Normal error, mean", "degrees", "lower", 1),
    ("tasks", "edge", "f"): _Metric("Contour F-measure", "", "higher"),
    ("neighbours", "precision_at_1"): _Metric("Neighbours, precision at 1", "", "higher"),
    ("domain", "accuracy"): _Metric("Domain accuracy", "", "near 0.5"),
}
_BETTER = {"lower": "lower is better", "higher": "higher is better", "near 0.5": "nearest to 0.5 is best", "": ""}
_TASK_NAMES = {"depth": "depth", "normal": "surface normals", "edge": "object contours"}
_NOT_YET = "Not measured yet. This command measures it:"
_COLUMNS = {"trained": "Trained", "not_adapted": "Not adapted", "untrained": "Untrained", "constant": "Constant"}

_TRAINING_CURVES = (
    _Curve("loss/depth", "Depth loss", colour="depth"),
    _Curve("loss/normal", "Normal loss", colour="normal"),
    _Curve("loss/edge", "Contour loss", colour="edge"),
    _Curve("loss/adversarial", "Adversarial loss", colour="adversarial"),
    _Curve("loss/discriminator", "Discriminator loss", colour="discriminator"),
    _Curve("lr", "Learning rate", "of backbone and heads"),
)
_SPEED_CURVES = (
    _Curve("throughput/pairs_per_s", "Throughput", "pairs/s", from_zero=True),
    _Curve("throughput/data_wait_fraction", "Waiting for data", "% of the time", factor=100, from_zero=True),
    _Curve("gpu/utilisation_percent", "GPU utilisation", "%", from_zero=True),
    _Curve("gpu/power_w", "GPU power", "W", from_zero=True),
    _Curve("gpu/memory_gib", "GPU memory in use", "GiB", from_zero=True),
)

# A chart, in the units of its view box; the plot area is what the axes enclose.
_WIDTH, _HEIGHT = 360, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 348, 8, 158
_MOST_POINTS = 200
_LOG_FROM_RATIO = 50


@dataclass(frozen=True, kw_only=True)
class _Run:
    folder: Path
    config: Config
    metrics: Sequence[_Numbers]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def section(self, *names: str) -> Mapping[str, Any]:
        """A section of the summary; empty where it was not measured."""
        values: Any = self.summary
        for name in names:
            values = values.get(name, {})
            if not isinstance(values, dict):
                raise _damaged(self.folder / "summary.json", f"{'.'.join(names)}: {values!r}", "sections of numbers")
        return dict(values)


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, complete or not at all, replacing an older one.

    A part that was not measured says so and names the command that measures it.

    Args:
        run: the run folder; nothing else in it changes.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder is no run, or one of its files is damaged; an older report stays.
        ConfigError: its `config.yaml` cannot be read.
    """
    page = _page(_read_run(run))
    path = run / "report.html"
    temporary = run / f".{path.name}.{os.getpid()}.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _read_run(run: Path) -> _Run:
    if not (run / "config.yaml").is_file():
        raise DataError(
            "the folder holds no run", where=run, expected="a config.yaml", do="give the --out of a training"
        )
    try:
        metrics = read_metrics(run)
    except ValueError as error:
        raise _damaged(run / "metrics.jsonl", error, "one JSON object a line") from error
    for line in metrics:
        if not (isinstance(line, dict) and "step" in line and all(isinstance(v, int | float) for v in line.values())):
            raise _damaged(run / "metrics.jsonl", line, "numbers by name, one of them the step")
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise _damaged(path, error, "JSON") from error
    if not isinstance(summary, dict):
        raise _damaged(path, type(summary).__name__, "a JSON object")
    return _Run(folder=run, config=read_config(run / "config.yaml"), metrics=metrics, summary=summary)


def _damaged(path: Path, seen: object, expected: str) -> DataError:
    return DataError("a file of the run is damaged", where=path, seen=seen, expected=expected)


def _page(run: _Run) -> str:
    template = Template(files("fastssl").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=html.escape(run.name),
        version=__version__,
        lead=_lead(run),
        facts=_facts(run.config),
        results=_key_results(run),
        curves=_charts(run, _TRAINING_CURVES),
        tasks=_tasks(run),
        neighbours=_neighbours(run),
        domain=_domain(run),
        progress=_progress(run),
        speed=_speed(run),
        settings=_settings(run.config),
    )


# The head of the page


def _lead(run: _Run) -> str:
    config = run.config
    layer = config.model.adapted_layer
    tasks = _listed([_TASK_NAMES[task] for task in config.model.tasks])
    learnt = f"The network learnt {tasks} from the rendered images of {_dataset(config.data.synthetic)}"
    if layer == "none":
        adapted = "No layer was adapted to photos."
    else:
        photos = _dataset(config.data.real)
        adapted = f"A discriminator pushed its {layer} features to be alike for these and for photos of {photos}."
    steps = run.summary.get("steps")
    if isinstance(steps, int):
        return f'<p class="lead">{learnt} in {steps:,} steps. {adapted}</p>'
    done = int(run.metrics[-1]["step"]) if run.metrics else 0
    unfinished = _missing(
        f"Training has not ended; {done:,} steps are on record. This command continues it:",
        f"train --out {_path(run)} --resume",
    )
    return f'<p class="lead">{learnt}. {adapted}</p>{unfinished}'


def _facts(config: Config) -> str:
    data, train, layer = config.data, config.train, config.model.adapted_layer
    photos = "" if layer == "none" else f", {data.batch_real} real"
    facts = {
        "Preset": html.escape(config.preset),
        "Input": f"{data.size} &times; {data.size} px",
        "Images a step": f"{data.batch_synthetic} rendered{photos}",
        "Adapted layer": layer,
        "Precision": f"{train.amp_dtype}, mixed" if train.amp else "float32",
        "Seed": str(train.seed),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _dataset(path: str) -> str:
    """The end of a path, enough to know the dataset by; the whole path is in the settings."""
    return f"<code>{html.escape('/'.join(Path(path).parts[-2:]) or 'an unnamed dataset')}</code>"


def _key_results(run: _Run) -> str:
    cards = []
    for place, metric in _KEY_RESULTS.items():
        row = _known(run.section(*place))
        if "trained" in row:
            cards.append(_card(metric, row))
    if cards:
        return f'<div class="cards">{"".join(cards)}</div>'
    return '<p class="missing">Not measured yet. The sections below name the commands.</p>'


def _card(metric: _Metric, row: _Numbers) -> str:
    """One metric of all networks, as bars from zero with their numbers."""
    to_half = metric.better == "near 0.5"
    most = 1 if to_half else max((abs(value) for value in row.values() if math.isfinite(value)), default=0) or 1
    lines = []
    for column, value in row.items():
        width = 100 * abs(value) / most if math.isfinite(value) else 0
        lines.append(
            f'<tr class="{column}"><th scope="row">{_COLUMNS[column]}</th><td class="track" aria-hidden="true">'
            f'<div class="bar" style="width:{width:.1f}%"></div></td><td class="value">{_number(value, metric)}</td>'
            "</tr>"
        )
    unit = ", ".join(part for part in (metric.unit, _BETTER[metric.better]) if part)
    return (
        f'<div class="card"><h3>{metric.name}</h3><p class="note">{unit}</p>'
        f'<table class="bars{" to-half" if to_half else ""}">{"".join(lines)}</table>{_verdict(metric, row)}</div>'
    )


def _verdict(metric: _Metric, row: _Numbers) -> str:
    """Whether the trained network beats each of the others, in words."""
    others = [column for column in row if column != "trained"]
    unbeaten = [column for column in others if not _cost(metric, row["trained"]) < _cost(metric, row[column])]
    if not others:
        return ""
    if unbeaten:
        return f'<p class="verdict bad">&#10007; not better than {_listed(_columns_in_words(unbeaten))}</p>'
    return f'<p class="verdict good">&#10003; better than {_listed(_columns_in_words(others))}</p>'


def _columns_in_words(columns: Iterable[str]) -> list[str]:
    return [_COLUMNS[column].lower() for column in columns]


# Tables of metrics


def _table(run: _Run, groups: Mapping[str, tuple[tuple[str, ...], Mapping[str, _Metric]]], caption: str) -> str:
    """Metrics line by line, networks as columns.

    Args:
        run: whose summary holds the numbers.
        groups: by title (empty for none), the section of the summary and the metrics there.
        caption: read out before the table.
    """
    rows = {
        title: {name: _known(run.section(*place, name)) for name in metrics}
        for title, (place, metrics) in groups.items()
    }
    columns = [column for column in _COLUMNS if any(column in row for group in rows.values() for row in group.values())]
    head = "".join(f'<th scope="col">{_COLUMNS[column]}<span class="mark"></span></th>' for column in columns)
    body = []
    for title, (_, metrics) in groups.items():
        lines = [_table_row(metrics[name], row, columns) for name, row in rows[title].items() if row]
        group = f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}">{title}</th></tr>' if title else ""
        body.append(f"<tbody>{group}{''.join(lines)}</tbody>")
    return (
        f'<div class="scroll"><table class="metrics"><caption class="hidden">{caption}</caption>'
        f'<thead><tr><th scope="col">Metric</th>{head}</tr></thead>{"".join(body)}</table></div>'
    )


def _table_row(metric: _Metric, row: _Numbers, columns: Sequence[str]) -> str:
    hint = ", ".join(part for part in (metric.unit, _BETTER[metric.better]) if part)
    cells = [f'<th scope="row">{metric.name}{f" <small>{hint}</small>" if hint else ""}</th>']
    best = _best(metric, row)
    for column in columns:
        number = _number(row[column], metric) if column in row else "&ndash;"
        if column in best:
            mark = '<span class="mark" aria-hidden="true">&#10003;</span><span class="hidden"> best</span>'
            cells.append(f'<td class="best">{number}{mark}</td>')
        else:
            cells.append(f'<td>{number}<span class="mark"></span></td>')
    return f"<tr>{''.join(cells)}</tr>"


def _best(metric: _Metric, row: _Numbers) -> set[str]:
    """The columns with the best value; none where all are as good, or where no value is better than another."""
    costs = {column: _cost(metric, value) for column, value in row.items()}
    finite = {cost for cost in costs.values() if math.isfinite(cost)}
    if not metric.better or len(set(costs.values())) < 2 or not finite:
        return set()
    return {column for column, cost in costs.items() if cost == min(finite)}


def _cost(metric: _Metric, value: float) -> float:
    """Smaller is better; what is not a finite number is worst."""
    if not math.isfinite(value):
        return math.inf
    return {"lower": value, "higher": -value, "near 0.5": abs(value - 0.5), "": 0.0}[metric.better]


def _known(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the columns that the page knows, in their order."""
    return {column: float(row[column]) for column in _COLUMNS if isinstance(row.get(column), int | float)}


def _number(value: float, metric: _Metric) -> str:
    return f"{value * metric.factor:.{metric.digits}f}" if math.isfinite(value) else "not finite"


# The sections


def _tasks(run: _Run) -> str:
    command = f"eval tasks {_path(run)} --synthetic HELD_OUT_RENDERS"
    picture = _sheet(
        run.folder / "samples" / "tasks.png",
        "Held-out rendered images in rows: the image, then the ground truth and the prediction of every task",
        "Rendered images that the network has not seen. Depth is light where near and dark where far. Normals are red "
        "where they point right, green where up, blue towards the viewer. Contours are dark where certain. Gray pixels "
        "of the ground truth are not known.",
    )
    measured = run.section("tasks")
    groups = {
        _TASK_NAMES[task].capitalize(): (("tasks", task), metrics)
        for task, metrics in _TASK_METRICS.items()
        if task in measured
    }
    table = _table(run, groups, "Metrics of every task on held-out renders") if groups else _missing(_NOT_YET, command)
    return picture + table


def _neighbours(run: _Run) -> str:
    values = run.section("neighbours")
    if not values:
        return _missing(_NOT_YET, f"eval neighbours {_path(run)} --real HELD_OUT_PHOTOS")
    picture = _sheet(
        run.folder / "samples" / "neighbours.png",
        "Query crops in rows, each with its nearest neighbours by every network; right ones have a green frame",
        f"Queries and their nearest neighbours by the {_layer(values)} features of every network, nearest first. "
        "A green frame marks a crop of the same photograph.",
    )
    return picture + _table(run, {"": (("neighbours",), _NEIGHBOUR_METRICS)}, "Precision of nearest neighbours")


def _domain(run: _Run) -> str:
    values = run.section("domain")
    if not values:
        command = f"eval domain {_path(run)} --synthetic HELD_OUT_RENDERS --real HELD_OUT_PHOTOS"
        return _missing(_NOT_YET, command)
    layer = f'<p class="note">The features are those of {_layer(values)}, averaged over the image.</p>'
    return layer + _table(run, {"": (("domain",), _DOMAIN_METRICS)}, "Accuracy of telling the domains apart")


def _layer(values: Mapping[str, Any]) -> str:
    return html.escape(str(values.get("layer", "compared")))


def _progress(run: _Run) -> str:
    paths = sorted((run.folder / "samples").glob("train_*.png"))
    if not paths:
        return (
            '<p class="missing">No pictures yet. Training draws one every <code>train.picture_every</code> steps.</p>'
        )
    shown = sorted({0, len(paths) // 2, len(paths) - 1})
    return "".join(_progress_picture(paths[index]) for index in shown)


def _progress_picture(path: Path) -> str:
    digits = path.stem.removeprefix("train_")
    step = f"{int(digits):,}" if digits.isdecimal() else html.escape(digits)
    alternative = f"Training images in rows, their ground truth and predictions at step {step}"
    return f"<h3>Step {step}</h3>{_sheet(path, alternative)}"


def _speed(run: _Run) -> str:
    values = run.section("throughput")
    words = '<p class="missing">The throughput of the whole run is known when training ends.</p>'
    rate, wait = values.get("pairs_per_s"), values.get("data_wait_fraction")
    if isinstance(rate, int | float) and isinstance(wait, int | float):
        limit = html.escape(str(run.summary.get("limited_by", "unknown")))
        words = (
            f"<p>Over the whole run <b>{rate:.1f} pairs/s</b>, a pair being one rendered image and one photo. The step "
            f"waited for data <b>{100 * wait:.1f} %</b> of the time: the run was limited by <b>{limit}</b>.</p>"
        )
    return words + _charts(run, _SPEED_CURVES)


def _settings(config: Config) -> str:
    sections = "".join(
        f"<h3>{name}</h3>{_settings_table(name, getattr(config, name))}"
        for name in type(config).model_fields
        if isinstance(getattr(config, name), BaseModel)
    )
    return f"<details><summary>All settings, preset {html.escape(config.preset)}</summary>{sections}</details>"


def _settings_table(section: str, settings: BaseModel) -> str:
    lines = []
    for name, value in settings.model_dump(mode="json").items():
        words = value if isinstance(value, str) else json.dumps(value)
        meaning = html.escape(type(settings).model_fields[name].description or "")
        meaning = re.sub("`([^`]+)`", r"<code>\1</code>", meaning)
        lines.append(
            f'<tr><th scope="row"><code>{section}.{name}</code></th>'
            f"<td><code>{html.escape(words) or '&ndash;'}</code></td><td>{meaning}</td></tr>"
        )
    return f'<table class="settings">{"".join(lines)}</table>'


def _missing(what: str, command: str) -> str:
    return f'<p class="missing">{what} <code class="command">fastssl {html.escape(command)}</code></p>'


def _path(run: _Run) -> str:
    return shlex.quote(str(run.folder))


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _sheet(path: Path, alternative: str, caption: str = "") -> str:
    """A picture of the run as a data URI; nothing where it does not exist."""
    if not path.exists():
        return ""
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.verify()
    except (OSError, SyntaxError) as error:
        raise _damaged(path, error, "a PNG picture; remove it to leave it out") from error
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    figcaption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        '<figure class="sheet"><div class="scroll" tabindex="0" role="region" aria-label="Picture, scrolls sideways">'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{alternative}"></div>'
        f"{figcaption}</figure>"
    )


# Charts


def _charts(run: _Run, curves: Sequence[_Curve]) -> str:
    references = _undecided(run.config)
    charts = []
    for curve in curves:
        points = [(line["step"], line[curve.metric] * curve.factor) for line in run.metrics if curve.metric in line]
        if points:
            charts.append(_chart(curve, points, references.get(curve.metric)))
    if charts:
        return f'<div class="charts">{"".join(charts)}</div>'
    return (
        '<p class="missing">Nothing is logged yet. Training writes a line every <code>train.log_every</code> steps.</p>'
    )


def _undecided(config: Config) -> dict[str, float]:
    """The adversarial losses where D gives one half for everything: it cannot tell the domains apart."""
    return {
        "loss/adversarial": config.loss.adversarial_weight * math.log(2),
        "loss/discriminator": config.loss.discriminator_weight * 2 * math.log(2),
    }


def _chart(curve: _Curve, points: Sequence[_Point], reference: float | None) -> str:
    """A series over the steps as a figure: axes, the curve, its last value, and a reading under the pointer."""
    last_step, last = points[-1]
    finite = [value for _, value in points if math.isfinite(value)]
    bad = len(points) - len(finite)
    if not finite:
        return f'<figure class="chart"><figcaption><h3>{curve.name}</h3>no finite value</figcaption></figure>'
    y = _y_scale([*finite, *([] if reference is None else [reference])], from_zero=curve.from_zero)
    x = _x_scale(last_step)
    drawn = _thinned(points)
    notes = [curve.unit]
    if y.log:
        notes.append("logarithmic axis")
    if reference is not None:
        notes.append("dashed: discriminator undecided")
    words = (
        f"{len(points)} values from step {points[0][0]:g} to {last_step:g}; "
        f"lowest {_short(min(finite))}, highest {_short(max(finite))}, last {_short(last)}"
        f"{f', {bad} not finite' if bad else ''}."
    )
    key = curve.metric.replace("/", "-")
    return (
        f'<figure class="chart {curve.colour}"><figcaption><h3>{curve.name}</h3><b>{_short(last)}</b>'
        f"<small>{', '.join(notes)}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{key}-title {key}-words">'
        f'<title id="{key}-title">{curve.name}</title><desc id="{key}-words">{words}</desc>'
        f"{_axes(x, y)}{_reference_line(reference, y)}{_curve(drawn, x, y)}{_readings(drawn, x)}</svg></figure>"
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


def _reference_line(reference: float | None, y: _Scale) -> str:
    if reference is None:
        return ""
    height = y.at(reference)
    return f'<line class="reference" x1="{_LEFT}" y1="{height:.1f}" x2="{_RIGHT}" y2="{height:.1f}"/>'


def _curve(points: Sequence[_Point], x: _Scale, y: _Scale) -> str:
    """The points joined by lines, with a gap at every value that is not finite, and a dot at the end of each piece."""
    pieces: list[list[_Point]] = [[]]
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


def _readings(points: Sequence[_Point], x: _Scale) -> str:
    """Invisible bands, one per point, that name step and value under the pointer."""
    width = (_RIGHT - _LEFT) / len(points)
    height = _BOTTOM - _TOP
    return "".join(
        f'<rect class="reading" x="{x.at(step) - width / 2:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}">'
        f"<title>step {step:g}: {_short(value)}</title></rect>"
        for step, value in points
    )


def _thinned(points: Sequence[_Point]) -> list[_Point]:
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
