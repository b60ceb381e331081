"""Functions that stay right whatever becomes of the file that keeps them compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from fastssl.compiled import compiled

def double(x):
    return 2 * x
"""
CALL = "import logging; logging.basicConfig(level=logging.INFO); import twice; print(twice.compiled(twice.double)(21))"


def run(folder: Path, script: str = CALL, **environment: str) -> tuple[str, str]:
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}:{root}", "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("damage", [b"", b"torn", None])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_torn_cache_costs_a_compilation(tmp_path: Path, damage: bytes | None, kind: str) -> None:
    (tmp_path / "twice.py").write_text(MODULE)
    assert run(tmp_path) == ("42", "")
    (kept,) = (tmp_path / "__pycache__").glob(f"*.{kind}")
    kept.write_bytes(kept.read_bytes()[:-20] if damage is None else damage)
    assert run(tmp_path)[0] == "42"
    assert run(tmp_path) == ("42", "")  # mended


def test_no_folder_for_a_cache_is_no_error(tmp_path: Path) -> None:
    """A folder that is a file stands for one that cannot be written to, which root could."""
    (tmp_path / "twice.py").write_text(MODULE)
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / ".cache").write_text("")
    result, told = run(tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert result == "42"
    assert told.count("NUMBA_CACHE_DIR") == 1


LOAD = """
import gc, sys
from fastssl.compiled import load_compiler

load_compiler()
print(gc.isenabled(), sorted({"scipy", "cffi"} & sys.modules.keys()))
import scipy.linalg, twice
print(twice.compiled(twice.double)(21), scipy.linalg.det([[3.0]]))
"""


def test_the_compiler_is_loaded_without_what_others_can_still_load(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(MODULE)
    assert run(tmp_path, LOAD) == ("True []\n42 3.0", "")


KEPT = """
import sys, twice
print(twice.compiled(twice.double)(21), "numba.cpython.printimpl" in sys.modules)
print(twice.compiled(lambda x: str(x) + "!")(3), "numba.cpython.printimpl" in sys.modules)
"""


def test_a_kept_function_loads_what_compiles_only_for_one_that_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(MODULE)
    assert run(tmp_path) == ("42", "")
    result, _ = run(tmp_path, KEPT)
    assert result == "42 False\n3! True"


KERNEL = """
from fastssl.compiled import kernel

@kernel
def factor():
    return 2
"""
CALLER = """
from fastssl.compiled import compiled
from inner import factor

@compiled
def product(x):
    return factor() * x
"""


def test_a_change_of_what_a_function_calls_has_it_compiled_anew(tmp_path: Path) -> None:
    """Its own file is as it was, and what is kept of it holds the other's code."""
    (tmp_path / "outer.py").write_text(CALLER)
    call = "import outer; print(outer.product(21))"
    for factor in ("2", "3"):
        (tmp_path / "inner.py").write_text(KERNEL.replace("2", factor))
        # Python's own bytecode knows a file by its size and the second in which it was written.
        assert run(tmp_path, call, PYTHONDONTWRITEBYTECODE="1")[0] == str(21 * int(factor))
