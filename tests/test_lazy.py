"""Packages whose names are loaded when they are first used, and what that leaves unloaded."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", ["fastssl.shards", "fastssl.sources"])
def test_every_name_is_the_one_that_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (only_for_types,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in only_for_types.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    assert seen.keys() == set(module.__all__)
    for name, home in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name), name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", ["fastssl.shards", "fastssl.sources"])
def test_no_module_has_the_name_of_what_a_package_offers(package: str) -> None:
    """It would take the name's place as soon as it is loaded."""
    module = importlib.import_module(package)
    modules = {path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py")}
    assert modules.isdisjoint(module.__all__)


def test_packing_images_loads_neither_other_layouts_nor_what_reading_needs() -> None:
    code = (
        "import sys; from fastssl.shards import pack; from fastssl.sources import FolderSource; "
        "print(*(name for name in sys.modules if name.startswith(('fastssl.s', 'asyncio', 'numba', 'torch'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"fastssl.shards.writer", "fastssl.sources.folder"} <= loaded
    unwanted = {"asyncio", "numba", "torch", "fastssl.shards.reader", "fastssl.sources.hypersim"}
    assert loaded.isdisjoint(unwanted)
