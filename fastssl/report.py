"""The report of a run: one HTML page that needs nothing but itself, and its key results as text for a terminal.

It shows what training and evaluation left in the run folder and computes nothing anew, so it needs neither torch nor
DALI. The page's frame and style are in `report.html`; here its parts are filled in: charts as SVG, pictures as data
URIs, numbers as tables. All text that comes from the run is escaped.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple

from PIL import Image
from pydantic import BaseModel

from fastssl import __version__
from fastssl.addresses import masked
from fastssl.charts import Reference, line_chart
from fastssl.config import Config
from fastssl.errors import DataError
from fastssl.faults import machine_faults_named
from fastssl.files import complete_or_absent, escaped, read_regular
from fastssl.methods import find_method, read_config

log = logging.getLogger(__name__)

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
_DEPTH, _NORMAL, _CONTOUR = ("tasks", "depth", "rmse"), ("tasks", "normal", "mean"), ("tasks", "edge", "f")
_DOMAIN, _AT_1, _AT_5 = ("domain", "accuracy"), ("neighbours", "precision_at_1"), ("neighbours", "precision_at_5")
_KEY_RESULTS = {
    _DEPTH: _Metric("Depth error, RMS", "m", "lower"),
    _NORMAL: _Metric("Normal error, mean", "degrees", "lower", 1),
    _CONTOUR: _Metric("Contour F-measure", "", "higher"),
    _DOMAIN: _Metric("Domain accuracy", "", "near 0.5"),
    _AT_1: _Metric("Neighbours, precision at 1", "", "higher"),
    _AT_5: _Metric("Neighbours, precision at 5", "", "higher"),
}
_CARDS = (_DEPTH, _NORMAL, _CONTOUR, _AT_1, _DOMAIN)
_BETTER = {"lower": "lower is better", "higher": "higher is better", "near 0.5": "nearest to 0.5 is best", "": ""}
_TASK_NAMES = {"depth": "depth", "normal": "surface normals", "edge": "object contours"}
_KINDS = {"synthetic": "rendered images", "real": "photos"}
_UNITS = {"pairs": ", a pair being one rendered image and one photo"}
_NOT_YET = "Not measured yet. This command measures it:"
_COLUMNS = {"trained": "Trained", "not_adapted": "Not adapted", "untrained": "Untrained", "constant": "Constant"}
_TERMINAL_COLUMNS = ("trained", "untrained", "constant", "not_adapted")

_TRAINING_CURVES = (
    _Curve("loss/depth", "Depth loss", colour="depth"),
    _Curve("loss/normal", "Normal loss", colour="normal"),
    _Curve("loss/edge", "Contour loss", colour="edge"),
    _Curve("loss/adversarial", "Adversarial loss", colour="adversarial"),
    _Curve("loss/discriminator", "Discriminator loss", colour="discriminator"),
)
_LR_CURVE = _Curve("lr", "Learning rate", "of the backbone")
_SPEED_CURVES = (
    _Curve("throughput/pairs_per_s", "Throughput", "pairs/s", from_zero=True),
    _Curve("throughput/images_per_s", "Throughput", "images/s", from_zero=True),
    _Curve("throughput/data_wait_fraction", "Waiting for data", "% of the time", factor=100, from_zero=True),
    _Curve("gpu/utilisation_percent", "GPU utilisation", "%", from_zero=True),
    _Curve("gpu/power_w", "GPU power", "W", from_zero=True),
    _Curve("gpu/memory_gib", "GPU memory in use", "GiB", from_zero=True),
)


@dataclass(frozen=True, kw_only=True)
class _Run:
    folder: Path
    config: Config
    metrics: Sequence[_Numbers]
    summary: Mapping[str, Any]
    torn: list[str]
    """What could not be read, file by file: a power cut leaves files that are not whole."""

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

    A part that was not measured says so and names the command that measures it. Files that a power cut has torn are
    read as far as they are whole; the page and a warning name them.

    Args:
        run: the run folder; nothing else in it changes.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder is no run, or one of its files holds something else; an older report stays.
        ConfigError: its `config.yaml` cannot be read.
        MachineError: a file cannot be read or written, through no fault of its own.
    """
    path = run / "report.html"
    with machine_faults_named():
        read = _read_run(run)
        page = _utf8(_page(read))
        with complete_or_absent(path) as file:
            file.write(page)
    for words in read.torn:
        log.warning("%s: %s", run, words)
    return path


def _utf8(page: str) -> bytes:
    """The page's bytes; of a name that is not UTF-8, or half an emoji, what is no character is spelt out."""
    return re.sub("[\udc80-\udcff]", lambda byte: escaped(byte[0]), page).encode("utf-8", "backslashreplace")


def summary_table(run: Path) -> str:
    """The key held-out results of a run, and its throughput, as plain text that fits 100 columns.

    Metrics are lines and networks are columns; "-" where a network has no such number. What was not measured for any
    network is left out, so the text is empty where nothing was.

    Args:
        run: the run folder; nothing in it changes.

    Returns:
        The table; every line ends with a line break.

    Raises:
        DataError: the folder is no run, or one of its files holds something else.
        ConfigError: its `config.yaml` cannot be read.
        MachineError: a file cannot be read, through no fault of its own.
    """
    with machine_faults_named():
        read = _read_run(run)
    rows = {place: row for place in _KEY_RESULTS if (row := _known(read.section(*place)))}
    columns = [column for column in _TERMINAL_COLUMNS if any(column in row for row in rows.values())]
    table = [["", *_columns_in_words(columns)]]
    for place, row in rows.items():
        metric = _KEY_RESULTS[place]
        numbers = [_number(row[column], metric) if column in row else "-" for column in columns]
        table.append([f"{metric.name} ({_hint(metric)})", *numbers])
    lines = _aligned(table) if rows else []
    speed = _throughput(read)
    if speed is not None:
        lines.append(
            f"{speed.rate:.1f} {speed.unit}/s, waiting for data {speed.data_wait:.1f} % of the time, "
            f"limited by {speed.limited_by}"
        )
    return "".join(f"{line}\n" for line in lines)


def _read_run(run: Path) -> _Run:
    if not (run / "config.yaml").is_file():
        raise DataError(
            "the folder holds no run", where=run, expected="a config.yaml", hint="give the --out of a training"
        )
    torn = list[str]()
    metrics = _read_metrics(run / "metrics.jsonl", torn)
    summary = _read_summary(run / "summary.json", torn)
    return _Run(folder=run, config=read_config(run / "config.yaml"), metrics=metrics, summary=summary, torn=torn)


def _read_metrics(path: Path, torn: list[str]) -> list[dict[str, float]]:
    """The lines that are whole; a last one that is being written is not missed."""
    complete, _, rest = read_regular(path).rpartition(b"\n") if path.exists() else (b"", b"", b"")
    metrics, lost = [], int(b"\0" in rest)  # as a power cut leaves what was never written
    for text in complete.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            lost += 1
            continue
        if not (isinstance(line, dict) and "step" in line and all(isinstance(v, int | float) for v in line.values())):
            raise _damaged(path, line, "numbers by name, one of them the step")
        metrics.append(line)
    if lost:
        torn.append(f"{path.name} has {lost} lines that are not whole")
    return metrics


def _read_summary(path: Path, torn: list[str]) -> dict[str, Any]:
    try:
        summary = json.loads(read_regular(path)) if path.exists() else {}
    except ValueError:
        torn.append(f"{path.name} is not whole, so nothing that was measured is known")
        return {}
    if not isinstance(summary, dict):
        raise _damaged(path, type(summary).__name__, "a JSON object")
    return summary


def _damaged(path: Path, seen: object, expected: str) -> DataError:
    return DataError("a file of the run is damaged", where=path, seen=seen, expected=expected)


def _page(run: _Run) -> str:
    # First: what of the pictures is torn is told at the head.
    parts = {"neighbours": _neighbours(run), "tasks": _tasks(run), "progress": _progress(run)}
    template = Template(files("fastssl").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=html.escape(run.name),
        version=__version__,
        lead=_lead(run) + _torn(run.torn),
        facts=_facts(run.config),
        results=_key_results(run),
        curves=_charts(run, (*_TRAINING_CURVES, *_other_losses(run), _LR_CURVE)),
        **parts,
        domain=_domain(run),
        speed=_speed(run),
        settings=_settings(run.config),
    )


# The head of the page


def _torn(torn: Sequence[str]) -> str:
    if not torn:
        return ""
    return f'<p class="missing">Not all files of this run are whole: {html.escape("; ".join(torn))}.</p>'


def _lead(run: _Run) -> str:
    config = run.config
    learnt = html.escape(find_method(config.method).describe(config))
    sources = [f"{_KINDS[name]} of {_datasets(config.data.datasets(name))}" for name in _domains(config)]
    data = f"It was shown {_listed(sources)}"
    steps = run.summary.get("steps")
    if isinstance(steps, int):
        return f'<p class="lead">{learnt} {data} in {steps:,} steps.</p>'
    done = int(run.metrics[-1]["step"]) if run.metrics else 0
    unfinished = _missing(
        f"Training has not ended; {done:,} steps are on record. This command continues it:",
        f"train --out {_path(run)} --resume",
    )
    return f'<p class="lead">{learnt} {data}.</p>{unfinished}'


def _facts(config: Config) -> str:
    data, train = config.data, config.train
    batches = [f"{data.batch_size(name)} {'rendered' if name == 'synthetic' else name}" for name in _domains(config)]
    facts = {
        "Method": html.escape(config.method),
        "Preset": html.escape(config.preset),
        "Input": f"{data.size} &times; {data.size} px",
        "Images a step": ", ".join(batches),
        "Precision": f"{train.amp_dtype}, mixed" if train.amp else "float32",
        "Seed": str(train.seed),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _domains(config: Config) -> list[str]:
    """Names of the domains that a run with these settings reads."""
    return [request.name for request in find_method(config.method).domains(config)]


def _datasets(weights: Mapping[str, float]) -> str:
    """The ends of the paths, enough to know the datasets by; the whole paths are in the settings."""
    names = ["/".join(Path(masked(path)).parts[-2:]) for path in weights] or ["an unnamed dataset"]
    return _listed([f"<code>{html.escape(name)}</code>" for name in names])


def _key_results(run: _Run) -> str:
    cards = []
    for place in _CARDS:
        row = _known(run.section(*place))
        if "trained" in row:
            cards.append(_card(_KEY_RESULTS[place], row))
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
    return (
        f'<div class="card"><h3>{metric.name}</h3><p class="note">{_hint(metric)}</p>'
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

_Groups = Mapping[str, tuple[tuple[str, ...], Mapping[str, _Metric]]]


def _without_value(run: _Run, groups: _Groups) -> str:
    """What was measured and has no value for any network, as a depth where none is known."""
    names = [
        f"{title}: {metric.name}" if title else metric.name
        for title, (place, metrics) in groups.items()
        for name, metric in metrics.items()
        if (row := run.section(*place, name)) and not _known(row)
    ]
    words = "Without a value, as the images that were measured leave nothing to take it of: "
    return f'<p class="missing">{words}{", ".join(names)}.</p>' if names else ""


def _table(run: _Run, groups: _Groups, caption: str) -> str:
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
    hint = _hint(metric)
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


def _hint(metric: _Metric) -> str:
    return ", ".join(part for part in (metric.unit, _BETTER[metric.better]) if part)


def _known(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the columns that the page knows, in their order."""
    return {column: float(row[column]) for column in _COLUMNS if isinstance(row.get(column), int | float)}


def _number(value: float, metric: _Metric) -> str:
    return f"{value * metric.factor:.{metric.digits}f}" if math.isfinite(value) else "not finite"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text: the first column to the left, the others to the right, two spaces between them."""
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"{line[0]:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], others, strict=True))
        for line in table
    ]


# The sections


def _tasks(run: _Run) -> str:
    if not hasattr(find_method(run.config.method), "predict"):
        return '<p class="missing">The method of this run predicts neither depth nor normals nor contours.</p>'
    command = f"eval tasks {_path(run)} --synthetic HELD_OUT_RENDERS"
    picture = _sheet(
        run,
        "tasks.png",
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
    if not groups:
        return picture + _missing(_NOT_YET, command)
    return picture + _table(run, groups, "Metrics of every task on held-out renders") + _without_value(run, groups)


def _neighbours(run: _Run) -> str:
    values = run.section("neighbours")
    if not values:
        return _missing(_NOT_YET, f"eval neighbours {_path(run)} --real HELD_OUT_PHOTOS")
    picture = _sheet(
        run,
        "neighbours.png",
        "Query crops in rows, each with its nearest neighbours by every network; right ones have a green frame",
        f"Queries and their nearest neighbours by the {_layer(values)} features of every network, nearest first. "
        "A green frame marks a crop of the same photograph.",
    )
    groups = {"": (("neighbours",), _NEIGHBOUR_METRICS)}
    return picture + _table(run, groups, "Precision of nearest neighbours") + _without_value(run, groups)


def _domain(run: _Run) -> str:
    values = run.section("domain")
    if not values:
        command = f"eval domain {_path(run)} --synthetic HELD_OUT_RENDERS --real HELD_OUT_PHOTOS"
        return _missing(_NOT_YET, command)
    layer = f'<p class="note">The features are those of {_layer(values)}, averaged over the image.</p>'
    return layer + _table(run, {"": (("domain",), _DOMAIN_METRICS)}, "Accuracy of telling the domains apart")


def _layer(values: Mapping[str, Any]) -> str:
    return html.escape(str(values.get("conditions", {}).get("layer", "compared")))


def _progress(run: _Run) -> str:
    paths = sorted((run.folder / "samples").glob("train_*.png"))
    if not paths:
        return (
            '<p class="missing">No pictures yet. Training draws one every <code>train.picture_every</code> steps.</p>'
        )
    shown = sorted({0, len(paths) // 2, len(paths) - 1})
    return "".join(_progress_picture(run, paths[index]) for index in shown)


def _progress_picture(run: _Run, path: Path) -> str:
    digits = path.stem.removeprefix("train_")
    step = f"{int(digits):,}" if digits.isdecimal() else html.escape(digits)
    alternative = f"Training images in rows, their ground truth and predictions at step {step}"
    return f"<h3>Step {step}</h3>{_sheet(run, path.name, alternative)}"


def _speed(run: _Run) -> str:
    words = '<p class="missing">The throughput of the whole run is known when training ends.</p>'
    speed = _throughput(run)
    if speed is not None:
        unit = html.escape(speed.unit)
        words = (
            f"<p>Over the whole run <b>{speed.rate:.1f} {unit}/s</b>{_UNITS.get(unit, '')}. The step waited for data "
            f"<b>{speed.data_wait:.1f} %</b> of the time: the run was limited by "
            f"<b>{html.escape(speed.limited_by)}</b>.</p>"
        )
    return words + _charts(run, _SPEED_CURVES)


class _Throughput(NamedTuple):
    """Rates of the whole run; the wait for data is in percent of the time."""

    rate: float
    unit: str
    data_wait: float
    limited_by: str


def _throughput(run: _Run) -> _Throughput | None:
    """None where training has not ended."""
    values = run.section("throughput")
    unit = find_method(run.config.method).unit
    rate, wait = values.get(f"{unit}_per_s"), values.get("data_wait_fraction")
    if isinstance(rate, int | float) and isinstance(wait, int | float):
        return _Throughput(rate, unit, 100 * wait, str(run.summary.get("limited_by", "unknown")))
    return None


def _settings(config: Config) -> str:
    sections = "".join(
        f"<h3>{name}</h3>{_settings_table(name, getattr(config, name))}"
        for name in type(config).model_fields
        if isinstance(getattr(config, name), BaseModel)
    )
    return f"<details><summary>All settings, preset {html.escape(config.preset)}</summary>{sections}</details>"


def _settings_table(section: str, settings: BaseModel) -> str:
    lines = []
    for name, value in settings.model_dump().items():
        words = _value(value)
        meaning = html.escape(type(settings).model_fields[name].description or "")
        meaning = re.sub("`([^`]+)`", r"<code>\1</code>", meaning)
        lines.append(
            f'<tr><th scope="row"><code>{section}.{name}</code></th>'
            f"<td><code>{html.escape(masked(words)) or '&ndash;'}</code></td><td>{meaning}</td></tr>"
        )
    return f'<table class="settings">{"".join(lines)}</table>'


def _value(value: object) -> str:
    if isinstance(value, dict) and list(value.values()) == [1.0]:
        return str(next(iter(value)))  # the path of the only dataset, as `--set` takes it
    return value if isinstance(value, str) else json.dumps(value)


def _missing(what: str, command: str) -> str:
    return f'<p class="missing">{what} <code class="command">fastssl {html.escape(command)}</code></p>'


def _path(run: _Run) -> str:
    return shlex.quote(str(run.folder))


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _sheet(run: _Run, name: str, alternative: str, caption: str = "") -> str:
    """A picture of the run as a data URI; nothing where it does not exist, or is not whole."""
    path = run.folder / "samples" / name
    if not path.exists():
        return ""
    content = read_regular(path)
    try:
        with Image.open(BytesIO(content)) as image:
            width, height = image.size
            image.verify()
    except (OSError, SyntaxError):  # of its bytes: they are all in memory
        run.torn.append(f"samples/{name} is no whole picture")
        return ""
    data = base64.b64encode(content).decode("ascii")
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
            chart = line_chart(
                points,
                key=curve.metric.replace("/", "-"),
                name=curve.name,
                unit=curve.unit,
                colour=curve.colour,
                from_zero=curve.from_zero,
                reference=references.get(curve.metric),
            )
            charts.append(chart)
    if charts:
        return f'<div class="charts">{"".join(charts)}</div>'
    return (
        '<p class="missing">Nothing is logged yet. Training writes a line every <code>train.log_every</code> steps.</p>'
    )


def _other_losses(run: _Run) -> list[_Curve]:
    """Losses that no name of ours stands for, as a method calls them."""
    known = {curve.metric for curve in _TRAINING_CURVES}
    found = dict.fromkeys(name for line in run.metrics for name in line if name.startswith("loss/"))
    return [_Curve(name, f"{name[5:].replace('_', ' ').capitalize()} loss") for name in found if name not in known]


def _undecided(config: Config) -> dict[str, Reference]:
    """The losses of a network that knows nothing, such as a discriminator that gives one half for everything."""
    chance = find_method(config.method).chance(config)
    return {f"loss/{name}": Reference(loss, "chance") for name, loss in chance.items()}
