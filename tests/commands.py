"""Commands run in the test's own process."""

from __future__ import annotations

import sys

import pytest

from fastssl.__main__ import main


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `fastssl ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["fastssl", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
