"""A plugin of pytest that tells of a failure when it happens, so that a run which is cut short has told of it."""

from __future__ import annotations

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        sys.stderr.write(f"\nFAILED at {report.when}: {report.nodeid}\n{report.longreprtext}\n")
        sys.stderr.flush()
