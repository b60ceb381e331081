"""Messages of errors: a terminal and a log take them, whatever a file's name or a value holds."""

from __future__ import annotations

from fastssl.errors import DataError, printable


def test_a_name_cannot_steer_the_terminal_nor_begin_a_line() -> None:
    error = DataError("bad", where="a\n  hint: run rm\x1b[2J\udcfe", seen="two\nlines\x07")
    assert str(error).splitlines() == ["bad", "  where: a\\n  hint: run rm\\x1b[2J\\xfe", "  seen: two", "lines\\x07"]


def test_a_long_value_is_cut_and_its_length_told() -> None:
    lines = str(DataError("bad", seen="x" * 5000)).splitlines()
    assert lines == ["bad", f"  seen: {'x' * 1000} ... (5,000 characters)"]


def test_words_of_any_script_stay() -> None:
    assert printable("Zimmer für Gäste, 部屋, 🚪\tx\n") == "Zimmer für Gäste, 部屋, 🚪\tx\n"
