"""The conditions of a result, where there is no git and no repository."""

from __future__ import annotations

from pathlib import Path

import pytest

CONDITIONS = Path(__file__).parents[2] / "benchmarks"


def test_conditions_need_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CONDITIONS))
    from conditions import commit

    monkeypatch.delenv("FASTSSL_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"
    monkeypatch.setenv("FASTSSL_COMMIT", "abc1234")
    assert commit() == "abc1234"
