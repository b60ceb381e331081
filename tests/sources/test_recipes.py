"""The recipes: their structure, and that their commands are ones which the command line understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from sources.every_tree import TREES

from fastssl.cli import app
from fastssl.sources import LAYOUTS

RECIPES = sorted((Path(__file__).parents[2] / "shards" / "recipes").glob("*.md"))
PARTS = ["# ", "- **Where:** ", "- **Licence:** ", "- **Size:** ", "    fastssl shard ", "**What is converted.** "]
PARTS += ["**Known traps**"]


def commands(recipe: Path) -> list[list[str]]:
    lines = re.findall(r"^    fastssl (shard .*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_are_made_of_the_same_parts_in_the_same_order(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    places = [text.find(f"\n{part}") for part in PARTS[1:]]
    assert text.startswith(PARTS[0])
    assert places == sorted(places)
    assert places[0] > 0
    assert all(len(line) <= 120 for line in text.splitlines())
    licence = text[places[1] : places[2]]
    assert re.search(r"[Cc]heck the terms|by the README|unknown to the layout", licence)


def test_every_layout_has_a_recipe() -> None:
    """But the one that `fastssl render` writes."""
    packed = {call[call.index("--layout") + 1] for recipe in RECIPES for call in commands(recipe)}
    assert packed == set(LAYOUTS) - {"render"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_commands_are_understood(recipe: Path, tmp_path: Path) -> None:
    shard = typer.main.get_command(app).commands["shard"]
    for _, *arguments in commands(recipe):
        given = shard.make_context("shard", arguments).params
        layout, subset = given["layout"], given["subset"]
        assert (given["out"], given["size"], given["workers"]) == ("OUT", 256, 8)
        assert subset is None or subset in TREES[layout].subsets
        tree = TREES[layout].write(tmp_path / layout)
        assert LAYOUTS[layout](tree, subset=subset).subset == subset
