"""Processes that keep machine code at once, or are killed: none is given that of another signature or source."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from fastssl.kept_code import CodeFiles

OPERATIONS = ("_load_index", "_save_index", "_save_data")
NUM = 4
"""Operations of a process that keeps one function."""


def in_turns(files: CodeFiles, before: Callable[[], object]) -> CodeFiles:
    """Files whose every operation begins with this call."""

    def waiting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            before()
            return operation(*arguments)

        return wrapped

    for name in OPERATIONS:
        setattr(files, name, waiting(getattr(files, name)))
    return files


class Turns:
    """Lets two threads go on in a given order."""

    def __init__(self, order: list[int]) -> None:
        self._order, self._changed = order, threading.Condition()

    def wait(self, who: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._order[0] == who, timeout=30)

    def end(self) -> None:
        with self._changed:
            self._order.pop(0)
            self._changed.notify_all()


ORDERS = [[int(turn not in first) for turn in range(2 * NUM)] for first in combinations(range(2 * NUM), NUM)]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
def test_processes_that_keep_code_at_once_never_exchange_it(tmp_path: Path, order: list[int]) -> None:
    turns = Turns([*order])
    failed = list[BaseException]()

    def keep(who: int) -> None:
        begun = iter(range(NUM))

        def before() -> None:
            if next(begun):
                turns.end()
            turns.wait(who)

        try:
            in_turns(CodeFiles(str(tmp_path), "f", "source"), before).save(f"key {who}", f"code {who}")
        except BaseException as error:
            failed.append(error)
        turns.end()

    threads = [threading.Thread(target=keep, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = [CodeFiles(str(tmp_path), "f", "source").load(f"key {who}") for who in range(2)]
    assert all(code in (None, f"code {who}") for who, code in enumerate(found))
    assert any(found)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stops_at", range(NUM))
def test_one_that_is_killed_leaves_no_code_of_an_older_source(tmp_path: Path, stops_at: int) -> None:
    CodeFiles(str(tmp_path), "f", "old source").save("key", "old code")
    begun = iter(range(NUM))

    def before() -> None:
        if next(begun) == stops_at:
            raise Killed

    with pytest.raises(Killed):
        in_turns(CodeFiles(str(tmp_path), "f", "new source"), before).save("key", "new code")
    files = CodeFiles(str(tmp_path), "f", "new source")
    assert files.load("key") is None
    files.save("key", "new code")
    assert files.load("key") == "new code"


def test_what_is_not_as_it_was_written_is_refused_and_written_anew(tmp_path: Path) -> None:
    """A processor would run whatever it has become."""
    CodeFiles(str(tmp_path), "f", "source").save("key", "code")
    (file,) = tmp_path.glob("*.nbc")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not as it was written"):
        CodeFiles(str(tmp_path), "f", "source").load("key")
    CodeFiles(str(tmp_path), "f", "source").save("key", "code")
    assert CodeFiles(str(tmp_path), "f", "source").load("key") == "code"


def test_an_index_that_cannot_be_written_leaves_no_code_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise PermissionError("not its owner")

    monkeypatch.setattr(CodeFiles, "_save_index", fails)
    with pytest.raises(PermissionError):
        CodeFiles(str(tmp_path), "f", "source").save("key", "code")
    assert not list(tmp_path.iterdir())


def test_old_code_that_cannot_be_removed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.1.nbc").mkdir()  # no file, which unlink refuses
    os.utime(tmp_path / "f.1.nbc", (0, 0))
    files = CodeFiles(str(tmp_path), "f", "source")
    files.save("key", "code")
    assert files.load("key") == "code"


def test_what_could_not_be_used_is_kept_anew(tmp_path: Path) -> None:
    CodeFiles(str(tmp_path), "f", "source").save("key", "code that nobody can rebuild")
    files = CodeFiles(str(tmp_path), "f", "source")
    files.is_spoilt = True
    files.save("key", "code")
    assert CodeFiles(str(tmp_path), "f", "source").load("key") == "code"


def test_of_two_processes_that_compiled_the_same_the_second_keeps_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        CodeFiles(str(tmp_path), "f", "source").save("key", "code")
    (file,) = tmp_path.glob("*.nbc")
    file.write_bytes(b"torn")
    CodeFiles(str(tmp_path), "f", "source").save("key", "code")
    assert CodeFiles(str(tmp_path), "f", "source").load("key") == "code"


def test_code_that_nobody_names_is_removed_in_time(tmp_path: Path) -> None:
    CodeFiles(str(tmp_path), "f", "old source").save("key", "old code")
    (unused,) = tmp_path.glob("*.nbc")
    other = tmp_path / "f2.1.nbc"
    other.write_bytes(b"of another function")
    os.utime(other, (0, 0))
    files = CodeFiles(str(tmp_path), "f", "new source")
    files.save("first key", "first code")
    assert unused.exists()  # another process may be about to name it
    os.utime(unused, (0, 0))
    files.save("second key", "second code")
    assert not unused.exists()
    assert other.exists()
    assert [files.load(key) for key in ("first key", "second key")] == ["first code", "second code"]
