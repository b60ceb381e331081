"""The page: plain data for its template."""

from __future__ import annotations

import json
import logging
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from fastssl import __version__, charts
from fastssl.addresses import masked
from fastssl.config import Config
from fastssl.evaluate import EVALUATIONS, Dataset, Evaluation
from fastssl.evaluate.published import PublishedTable, published_for
from fastssl.faults import machine_faults_named
from fastssl.files import complete_or_absent, escaped
from fastssl.methods import unit_of
from fastssl.report.curves import is_weighted, speed_charts, training_charts, validation_charts
from fastssl.report.results import Table, cards, earlier_step, measured_rows, table, without_value
from fastssl.report.run import Picture, Run, read_run

log = logging.getLogger(__name__)

_KINDS = {"synthetic": "rendered images", "real": "photos"}
_SHORT_KINDS = {"synthetic": "rendered", "real": "real"}
_SHOWN_AS = {"synthetic": "renders", "real": "photos"}
_NEEDED = ("train_proposals", "test_proposals", "convention")
"""Options without which a run is not measured, although predictions of others are, or what to give is told then."""


class Section(NamedTuple):
    """An evaluation and what is known of it; `command` is what measures it, where it was not, or of an `earlier` step.

    `published` are figures of others, where it was.
    """

    evaluation: type[Evaluation]
    conditions: dict[str, str]
    earlier: str
    picture: Picture | None
    table: Table | None
    has_intervals: bool
    without_value: list[str]
    published: list[PublishedTable]
    command: str


class Setting(NamedTuple):
    """A setting as `--set` takes it."""

    name: str
    value: str
    meaning: str


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
        read = read_run(run)
        page = _utf8(_page(read))
        with complete_or_absent(path) as file:
            file.write(page)
    for words in read.torn:
        log.warning("%s: %s", run, words)
    return path


def _utf8(page: str) -> bytes:
    """The page's bytes; of a name that is not UTF-8, or half an emoji, what is no character is spelt out."""
    return re.sub("[\udc80-\udcff]", lambda byte: escaped(byte[0]), page).encode("utf-8", "backslashreplace")


def _page(run: Run) -> str:
    templates = Environment(
        loader=PackageLoader("fastssl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(_content(run))


def _content(run: Run) -> dict[str, Any]:
    """All that the template names."""
    config = run.config
    sections = _sections(run)
    columns = dict.fromkeys(column for section in sections if section.table for column in section.table.columns)
    return {
        "name": run.folder.resolve().name,
        "version": __version__,
        "learnt": run.method.describe(config),
        "sources": [(_KINDS[name], _datasets(config, name)) for name in run.domains],
        "steps": run.summary.get("steps"),
        "steps_on_record": run.step,
        "resume": f"fastssl train --out {_path(run)} --resume",
        "facts": _facts(run),
        "cards": cards(run),
        "legend": [column for column in columns if column.meaning],
        "curves": training_charts(run),
        "validation": validation_charts(run),
        "is_weighted": is_weighted(config),
        "sections": sections,
        "caption": run.method.caption,
        "progress": _progress(run),
        "throughput": run.throughput,
        "is_of_pairs": unit_of(run.config) == "pairs",
        "speed": speed_charts(run),
        "preset": config.preset,
        "settings": _settings(config),
        "chart_size": (charts.WIDTH, charts.HEIGHT),
        "torn": run.torn,
    }


def _datasets(config: Config, domain: str) -> list[str]:
    """The ends of the paths, enough to know the datasets by; the whole paths are in the settings."""
    weights = config.data.datasets(domain)
    return ["/".join(Path(masked(path)).parts[-2:]) for path in weights] or ["an unnamed dataset"]


def _facts(run: Run) -> dict[str, str]:
    config, data, train = run.config, run.config.data, run.config.train
    batches = [f"{data.batch_size(name)} {_SHORT_KINDS[name]}" for name in run.domains]
    return {
        "Method": config.method,
        "Preset": config.preset,
        "Input": f"{data.size} \N{MULTIPLICATION SIGN} {data.size} px",
        "Images a step": ", ".join(batches),
        "Precision": f"{train.amp_dtype}, mixed" if train.amp else "float32",
        "Seed": str(train.seed),
    }


def _sections(run: Run) -> list[Section]:
    """The evaluations that were made, or can be made of this run."""
    return [
        _section(run, evaluation)
        for evaluation in EVALUATIONS.values()
        if run.section(evaluation.name) or not evaluation.lack(run.config)
    ]


def _section(run: Run, evaluation: type[Evaluation]) -> Section:
    conditions, earlier = run.section(evaluation.name, "conditions"), earlier_step(run, evaluation)
    rows = measured_rows(run, evaluation)
    return Section(
        evaluation,
        conditions={name.replace("_", " "): masked(_condition(value)) for name, value in conditions.items()},
        earlier=earlier,
        picture=None if evaluation.sheet is None else run.picture(evaluation.sheet.file),
        table=table(rows),
        has_intervals=any(row.intervals for row in rows),
        without_value=without_value(run, evaluation),
        published=published_for(evaluation.name) if run.section(evaluation.name) else [],
        command="" if run.section(evaluation.name) and not earlier else _command(run, evaluation),
    )


def _command(run: Run, evaluation: type[Evaluation]) -> str:
    """What measures the run, with a word in the place of all that has to be given."""
    words, hints = [f"fastssl eval {evaluation.name} {_path(run)}"], get_type_hints(evaluation)
    for option in fields(cast(Any, evaluation)):
        domain = option.name.removeprefix("fit_")
        fits = domain != option.name
        is_needed = option.default is MISSING or option.name in _NEEDED
        if is_needed or (fits and not run.config.data.datasets(domain)):
            held = "TRAINING_" if fits else "HELD_OUT_" if hints[option.name] == Dataset else ""
            words.append(f"--{option.name.replace('_', '-')} {held}{_SHOWN_AS.get(domain, domain).upper()}")
    return " ".join(words)


def _progress(run: Run) -> list[tuple[str, Picture]]:
    """The first picture of training, one in the middle and the last, each with its step."""
    names = sorted(path.name for path in (run.folder / "samples").glob("train_*.png"))
    shown = sorted({0, len(names) // 2, len(names) - 1}) if names else []
    pictures = {names[index]: run.picture(names[index]) for index in shown}
    return [(_step(name), picture) for name, picture in pictures.items() if picture is not None]


def _step(name: str) -> str:
    digits = name.removeprefix("train_").removesuffix(".png")
    return f"{int(digits):,}" if digits.isdecimal() else digits


def _settings(config: Config) -> dict[str, list[Setting]]:
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    return {
        section: [
            Setting(f"{section}.{name}", masked(_value(value)), type(settings).model_fields[name].description or "")
            for name, value in settings.model_dump().items()
        ]
        for section, settings in sections.items()
        if isinstance(settings, BaseModel)
    }


def _condition(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{str(name).replace('_', ' ')}: {_condition(one)}" for name, one in value.items())
    return _value(value)


def _value(value: object) -> str:
    if isinstance(value, dict) and list(value.values()) == [1.0]:
        return str(next(iter(value)))  # the path of the only dataset, as `--set` takes it
    return value if isinstance(value, str) else json.dumps(value)


def _path(run: Run) -> str:
    return shlex.quote(str(run.folder))
