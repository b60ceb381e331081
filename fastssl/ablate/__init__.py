"""A grid of trainings and evaluations from a recipe, and its table beside published figures.

`recipe.py` reads the recipe and makes cells of it, `cells.py` trains and measures one, `grid.py` all of them, and
`table.py` sets what they found beside `published.yaml`.
"""

from fastssl.ablate.cells import Cell, Outcome
from fastssl.ablate.grid import check_unchanged, make_grid, state_of
from fastssl.ablate.recipe import Recipe, read_recipe
from fastssl.ablate.table import Table, as_markdown, as_text, table_of, write_table

__all__ = [
    "Cell",
    "Outcome",
    "Recipe",
    "Table",
    "as_markdown",
    "as_text",
    "check_unchanged",
    "make_grid",
    "read_recipe",
    "state_of",
    "table_of",
    "write_table",
]
