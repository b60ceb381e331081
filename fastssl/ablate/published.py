"""Published figures, as `published.yaml` has them; a recipe's table shows some beside its own numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from fastssl.config import Section, read_yaml, validated

PUBLISHED = Path(__file__).with_name("published.yaml")


class PublishedColumn(Section):
    """What the figures of a column are."""

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


@cache
def published_tables() -> dict[str, PublishedTable]:
    """All that is known, by name."""
    return {
        name: validated(PublishedTable, values, where=f"{PUBLISHED}: {name}")
        for name, values in read_yaml(PUBLISHED).items()
    }
