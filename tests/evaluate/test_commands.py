"""The commands that take an address where a folder would do, on one that a web server serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import command
from http_folder import served
from made_run import make_run, strict


@pytest.fixture
def web(coded_synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "cache"))
    with served(coded_synthetic) as address:
        yield address


def test_eval_takes_an_address(
    web: str,
    coded_synthetic: Path,
    coded_real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", coded_synthetic, coded_real)
    printed = []
    for data in (coded_synthetic, web):
        assert command(monkeypatch, "eval", "tasks", run, "--synthetic", data, "--json") == 0
        printed.append(strict(capsys.readouterr().out))
    assert [found.pop("conditions")["synthetic"] for found in printed] == [str(coded_synthetic), web]
    assert printed[0] == printed[1]


def test_verify_takes_an_address_and_says_what_it_could_not_look_for(
    web: str, coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = web.replace("http://", "http://ann:hunter2@") + "/?sig=hunter2"
    assert command(monkeypatch, "verify", secret, "--json") == 0
    out, err = capsys.readouterr()
    seen = json.loads(out)
    assert (seen["samples"], seen["faults"], seen["names_checked"]) == (11, 0, False)
    assert "not looked for" in err
    assert "hunter2" not in out + err
    assert command(monkeypatch, "verify", f"file://{coded_synthetic}", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["names_checked"]
    assert "not looked for" not in err


def test_show_takes_an_address(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "show", web, "--out", tmp_path / "sheet.png", "--count", 2) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
