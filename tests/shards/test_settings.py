from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from analytic_rooms import RoomSource

from fastssl.cli.shard import shard
from fastssl.errors import UsageError
from fastssl.shards import PackChoices, pack
from fastssl.shards.settings import DEFAULTS, packing_settings


def test_every_choice_has_a_default_and_the_command_has_the_same() -> None:
    assert DEFAULTS.keys() == PackChoices.__annotations__.keys()
    options = {name: option.default for name, option in inspect.signature(shard).parameters.items()}
    chosen = {name: value for name, value in DEFAULTS.items() if name != "part"}  # for which the command has --split
    assert {name: options[name] for name in chosen} == chosen


@pytest.mark.parametrize(
    ("choice", "where"),
    [
        ({"size": 0}, "size"),
        ({"samples_per_shard": 0}, "samples_per_shard"),
        ({"jpeg_quality": 101}, "jpeg_quality"),
        ({"target_codec": "zip"}, "target_codec"),
        ({"lz4_level": 13}, "lz4_level"),
        ({"part": (0.0, 1.5)}, "selection.part.1"),
        ({"limit": 0}, "selection.limit"),
    ],
)
def test_a_choice_out_of_range_is_refused(tmp_path: Path, choice: Any, where: str) -> None:
    with pytest.raises(UsageError, match="setting is out of range") as caught:
        pack(RoomSource(tmp_path, 3), tmp_path / "out", **choice)
    assert caught.value.where == where
    assert not (tmp_path / "out").exists()


def test_an_unknown_choice_is_no_setting(tmp_path: Path) -> None:
    wrong: Any = {"sise": 64}
    with pytest.raises(TypeError, match="sise"):
        packing_settings(RoomSource(tmp_path, 3), **wrong)
