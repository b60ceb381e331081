"""Published figures, as `published.yaml` has them; tables of recipes and reports show some beside their own numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from fastssl.config import Section, read_yaml, validated

PUBLISHED = Path(__file__).with_name("published.yaml")


class PublishedColumn(Section):
    """What the figures of a column are."""

    evaluation: str
    """That measures the same, by its name."""
    name: str
    """A heading: the data, the measure, its unit."""
    source: str
    """Who published them, in a word or two, which stands before the heading."""
    reference: str
    """Where exactly they stand."""
    protocol: str
    """How they were measured, as far as it is known."""


class PublishedTable(Section):
    """A table of figures that others measured."""

    title: str
    note: str
    columns: dict[str, PublishedColumn] = Field(min_length=1)
    rows: dict[str, dict[str, float]] = Field(min_length=1)
    """Figures by row and column, as they were printed; a row has those that are known."""


def published_for(evaluation: str) -> list[PublishedTable]:
    """The tables that have figures of an evaluation, each with its columns and rows alone."""
    found = []
    for table in published_tables().values():
        columns = {name: column for name, column in table.columns.items() if column.evaluation == evaluation}
        rows = {name: {key: row[key] for key in columns if key in row} for name, row in table.rows.items()}
        if columns:
            kept = {name: row for name, row in rows.items() if row}
            found.append(table.model_copy(update={"columns": columns, "rows": kept}))
    return found


@cache
def published_tables() -> dict[str, PublishedTable]:
    """All that is known, by name."""
    return {
        name: validated(PublishedTable, values, where=f"{PUBLISHED}: {name}")
        for name, values in read_yaml(PUBLISHED).items()
    }
