"""A crash of a test's process is told at the end, with the function in which it happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = "from crash_report import pytest_configure_node, pytest_sessionstart, pytest_terminal_summary"
CRASHES = """
import ctypes
import resource

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def test_reads_nowhere():
    ctypes.string_at(0)

def test_goes_on():
    pass
"""


def test_a_crash_is_told_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_crash.py").write_text(CRASHES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    summary = done.stdout[done.stdout.index("gw0: crash") :]
    assert "Segmentation fault" in summary
    assert "in test_reads_nowhere" in summary
    assert "1 failed, 1 passed" in summary
