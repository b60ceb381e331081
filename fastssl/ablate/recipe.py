"""Recipes of grids: a small YAML file, and the cells that it stands for.

    title: What is compared
    preset: tiny
    settings:                       # sections as in a file for --config; those of a row are added
      data: {synthetic: rooms, real: photos}
    seeds: [0, 1, 2]
    rows:
      contours: {settings: {model: {tasks: [edge], adapted_layer: none}}, published: contours}
      jigsaw: {method: jigsaw}
      drawn: {subject: "init:gaussian"}   # measured and not trained
    evaluations:                    # options as of `fastssl eval NAME`, such as train_from for --train-from
      linear: {train: classes/train, test: classes/val}
    columns:                        # names of evaluations and their metrics, as summary.json has them
      linear probe of conv5: linear.layers.conv5.top_1
    published: ablation             # a table of published.yaml

Paths are seen from the folder in which the command is run, as those of `--config` are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast, get_type_hints

import torch
from pydantic import Field, create_model

from fastssl.ablate.cells import Cell
from fastssl.backbones import build_backbone
from fastssl.config import Config, Section, dataset_path, nearest, read_yaml, validated
from fastssl.errors import ConfigError, UsageError
from fastssl.evaluate import (
    DRAWN,
    EVALUATIONS,
    Dataset,
    Evaluation,
    Metric,
    absolute_subject,
)
from fastssl.evaluate.published import PublishedTable, published_tables
from fastssl.methods import load_config

_NAME = re.compile("[a-z0-9][a-z0-9_-]*")
_SUBJECTS = ("trained", "trained_reestimated", "untrained", "constant", "unmoved")
_OF_ONE_SUBJECT = ("scores", "detections", "out", "progress")
"""Options that a recipe does not have: predictions of others, and where a single subject's files go."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class RowSettings(Section):
    """A row of a recipe: what is trained, or what is measured as it is."""

    method: str = ""
    """Of the training; empty = that of the recipe."""
    settings: dict[str, dict[str, Any]] = Field(default={})
    """By section; they are added to those of the recipe, and win."""
    subject: str = ""
    """What is measured and not trained: an `init:` of the backbone of these settings, or what else `fastssl eval`
    takes that is no run."""
    published: str = ""
    """The row of the published table that it is to stand beside."""


class RecipeSettings(Section):
    """A recipe as its file has it; rows are checked by themselves."""

    title: str
    preset: str = "paper"
    method: str = "cross_domain"
    settings: dict[str, dict[str, Any]] = Field(default={})
    seeds: tuple[Seed, ...] = Field(min_length=1)
    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    evaluations: dict[str, dict[str, Any]] = Field(min_length=1)
    columns: dict[str, str] = Field(min_length=1)
    published: str = ""


class Column(NamedTuple):
    """A column of the table: a metric of an evaluation, for one of the networks that it measures."""

    evaluation: str
    metric: Metric
    subject: str


class Row(NamedTuple):
    """A row of the table: its cells, and its published figures by column."""

    cells: tuple[Cell, ...]
    published: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A grid, with all of its settings resolved."""

    title: str
    rows: Mapping[str, Row]
    columns: Mapping[str, Column]
    evaluations: Mapping[str, Evaluation]
    published: PublishedTable | None

    @property
    def cells(self) -> list[Cell]:
        """All cells, the first seed of each row first, so that a table that is not complete has all rows."""
        by_row = [row.cells for row in self.rows.values()]
        return [cells[turn] for turn in range(max(map(len, by_row))) for cells in by_row if turn < len(cells)]


def read_recipe(path: Path) -> Recipe:
    """The grid that a file stands for.

    Raises:
        ConfigError: it is no YAML, or names what does not exist; the nearest name is offered.
    """
    given = validated(RecipeSettings, read_yaml(path, "recipe", "a title, rows, evaluations and columns"), where=path)
    if len(set(given.seeds)) < len(given.seeds):
        raise ConfigError("a seed is given twice", where=f"{path}: seeds", seen=list(given.seeds))
    evaluations = {name: _evaluation(name, options, path) for name, options in given.evaluations.items()}
    table = None
    if given.published:
        table = _known(given.published, published_tables(), "published table", f"{path}: published")
    rows = {name: _row(name, values, given, table, evaluations, path) for name, values in given.rows.items()}
    layers = _layers(cell for row in rows.values() for cell in row.cells)
    return Recipe(
        title=given.title,
        rows=rows,
        columns={name: _column(name, text, evaluations, layers, path) for name, text in given.columns.items()},
        evaluations=evaluations,
        published=table,
    )


def _known(name: str, known: Mapping[str, Any], kind: str, where: str) -> Any:
    if name not in known:
        raise ConfigError(f"there is no such {kind}", where=where, seen=repr(name), expected=nearest(name, known))
    return known[name]


def _evaluation(name: str, options: Mapping[str, Any], path: Path) -> Evaluation:
    """An evaluation with its options, whose paths become absolute."""
    kind, where = _known(name, EVALUATIONS, "evaluation", f"{path}: evaluations"), f"{path}: evaluations.{name}"
    hints, members, makers = get_type_hints(kind), dict[str, Any](), dict[str, Callable[[str], str | Path]]()
    for field in fields(cast(Any, kind)):
        if field.name in _OF_ONE_SUBJECT:
            continue
        hint = hints[field.name]
        if hint in (Dataset, Dataset | None, Path, Path | None):
            makers[field.name] = dataset_path if hint in (Dataset, Dataset | None) else _file_path
            hint = str if hint in (Dataset, Path) else str | None
        members[field.name] = (hint, ... if field.default is MISSING else field.default)
    schema = create_model(kind.__name__, __base__=Section, **members)
    values = validated(schema, options, where=where).model_dump()
    paths = {option: make(values[option]) for option, make in makers.items() if values[option] is not None}
    try:
        made: Evaluation = kind(**values | paths)
    except UsageError as error:
        place = f"{where}: {str(error.where or '').removeprefix('--')}"
        raise ConfigError(error.what, where=place, seen=error.seen, expected=error.expected, hint=error.hint) from error
    return made


def _file_path(text: str) -> Path:
    return Path(dataset_path(text))


def _row(
    name: str,
    values: Mapping[str, Any],
    recipe: RecipeSettings,
    table: PublishedTable | None,
    evaluations: Mapping[str, Evaluation],
    path: Path,
) -> Row:
    where = f"{path}: rows.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError("a row cannot have this name", where=where, expected="small letters, digits, _ and -")
    row = validated(RowSettings, values, where=where)
    figures: Mapping[str, float] = {}
    if row.published:
        if table is None:
            what, hint = "the recipe names no published table", "add published: NAME beside rows and columns"
            raise ConfigError(what, where=f"{where}.published", seen=repr(row.published), hint=hint)
        figures = _known(row.published, table.rows, "published row", f"{where}.published")
    subject = _subject(row.subject, f"{where}.subject") if row.subject else ""
    is_drawn = subject.startswith(DRAWN)
    config = _config(row, recipe, where)
    measured = Config(method="none") if subject else config  # what is not trained predicts no task
    measures = {kind: one for kind, one in evaluations.items() if not one.lack(measured)}
    seeds: tuple[int | None, ...] = recipe.seeds if is_drawn or not subject else (None,)
    cells = (
        Cell(row=name, seed=seed, config=_seeded(config, seed or 0), subject=subject, evaluations=measures)
        for seed in seeds
    )
    return Row(tuple(cells), figures)


def _subject(text: str, where: str) -> str:
    """What is measured and not trained, with the paths of its files and datasets absolute."""
    try:
        return absolute_subject(text)
    except UsageError as error:
        raise ConfigError(error.what, where=where, seen=error.seen, expected=error.expected) from error


def _seeded(config: Config, seed: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def _config(row: RowSettings, recipe: RecipeSettings, where: str) -> Config:
    """The settings of a row's runs, whose seed is set later."""
    settings: dict[str, dict[str, Any]] = {}
    for part in (recipe.settings, row.settings):
        for section, values in part.items():
            settings[section] = settings.get(section, {}) | values
    if "seed" in settings.get("train", {}):
        raise ConfigError("the seed is not a setting here", where=f"{where}: train.seed", hint="give it under seeds")
    try:
        config: Config = load_config(recipe.preset, method=row.method or recipe.method, settings=settings)
    except ConfigError as error:
        place = where if error.where is None else f"{where}: {error.where}"
        raise ConfigError(error.what, where=place, seen=error.seen, expected=error.expected, hint=error.hint) from error
    return config


def _layers(cells: Iterable[Cell]) -> set[str] | None:
    """All layers that the rows' backbones have; None where some are those of another library."""
    models = {}
    for cell in cells:
        if cell.subject and not cell.subject.startswith(DRAWN):
            return None
        models[repr(cell.config.model)] = cell.config
    return {layer for config in models.values() for layer in _backbone_layers(config)}


def _backbone_layers(config: Config) -> list[str]:
    with torch.device("meta"):
        return list(build_backbone(config.model).feature_info)


def _column(name: str, text: str, evaluations: Mapping[str, Evaluation], layers: set[str] | None, path: Path) -> Column:
    """The column of a name as `linear.layers.conv5.top_1`, perhaps with a network behind it, such as `.untrained`."""
    metrics = {}
    for evaluation, made in evaluations.items():
        for stated in made.metrics:
            for metric in stated.of_each(_stood_for(stated, evaluation, text) if layers is None else sorted(layers)):
                metrics[".".join((evaluation, *metric.path))] = (evaluation, metric)
    start, _, subject = text.rpartition(".")
    if text not in metrics and start in metrics:
        _known(subject, dict.fromkeys(_SUBJECTS), "column of an evaluation", f"{path}: columns.{name}")
    else:
        start, subject = text, "trained"
    evaluation, metric = _known(start, metrics, "metric of an evaluation here", f"{path}: columns.{name}")
    return Column(evaluation, metric, subject)


def _stood_for(metric: Metric, evaluation: str, text: str) -> list[str]:
    """What stands in a column's name for the `*` of a metric's path."""
    pattern = ".".join(r"([^.]+)" if part == "*" else re.escape(part) for part in (evaluation, *metric.path))
    found = re.match(pattern, text)
    return list(found.groups()) if found else []
