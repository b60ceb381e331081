"""Hooks that tell at the end where a process of the tests crashed.

pytest tells it too, at once and in the midst of all else, far above what a CI keeps.
"""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import IO, Any

import pytest

_FILE = pytest.StashKey[IO[str]]()


def _folder(config: Any) -> Path:
    folder: Path = config._tmp_path_factory.getbasetemp()
    return folder


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_configure_node(node: Any) -> None:
    node.workerinput["crash_report"] = str(_folder(node.config) / f"{node.gateway.id}_crash.txt")


def pytest_sessionstart(session: pytest.Session) -> None:
    given = getattr(session.config, "workerinput", None)
    if given is not None:
        session.config.stash[_FILE] = Path(given["crash_report"]).open("w")  # noqa: SIM115 - until the process ends
        faulthandler.enable(session.config.stash[_FILE])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for path in sorted(_folder(config).glob("*_crash.txt")):
        if path.stat().st_size:
            terminalreporter.section(path.stem.replace("_", ": "))
            terminalreporter.write(path.read_text())
