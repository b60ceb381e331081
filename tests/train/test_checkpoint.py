"""Checkpoints on disks that are full and after power cuts, and which of them are kept."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastssl.config import Config, plain, write_config
from fastssl.errors import CheckpointError, DataError, MachineError
from fastssl.faults import machine_fault
from fastssl.methods import load_config
from fastssl.train.checkpoint import Moment, _save, latest_checkpoint, load_trained, read_checkpoint, write_checkpoint

STATE = {"weights": torch.arange(50_000.0)}


def config(*overrides: str) -> Config:
    return load_config("tiny", overrides=overrides)


def moment(step: int, state: dict[str, Any]) -> Moment:
    return Moment(step=step, positions={}, state=state, ranks=[])


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow above it, root or not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("buffering", [0, 1 << 12, 1 << 22])
@pytest.mark.parametrize("num_values", [1, 50_000])
def test_a_full_disk_stays_in_the_chain_of_causes(buffering: int, num_values: int) -> None:
    with pytest.raises((OSError, RuntimeError)) as raised, open("/dev/full", "wb", buffering) as file:  # noqa: PTH123
        _save({"weights": torch.arange(float(num_values))}, file)  # type: ignore[arg-type]
    fault = machine_fault(raised.value)
    assert isinstance(fault, OSError)
    assert fault.errno == errno.ENOSPC


def test_what_does_not_fit_costs_no_checkpoint_that_was_there(tmp_path: Path) -> None:
    settings = config("train.keep_checkpoints=1")
    first = write_checkpoint(tmp_path, moment(1, STATE), settings, {})
    with files_of_at_most(100_000), pytest.raises(MachineError) as raised:
        write_checkpoint(tmp_path, moment(2, STATE), settings, {})
    assert "step_00000002.pt" in str(raised.value)
    assert "continue with --resume" in str(raised.value)
    assert raised.value.exit_code == 4
    assert names(tmp_path) == [first.name]
    assert torch.equal(read_checkpoint(first, settings)["state"]["weights"], STATE["weights"])


def test_the_newest_and_the_chosen_ones_are_kept(tmp_path: Path) -> None:
    settings = config("train.keep_checkpoints=2", "train.keep_every=4")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000003.pt.abcd.partial").write_bytes(b"of a killed process")
    (tmp_path / "checkpoints" / "step_best.pt").write_bytes(b"the user's own")
    for step in range(1, 10):
        write_checkpoint(tmp_path, moment(step, {}), settings, {})
        kept = {number for number in range(1, step + 1) if number > step - 2 or number % 4 == 0}
        assert names(tmp_path) == [*(f"step_{number:08d}.pt" for number in sorted(kept)), "step_best.pt"]


def test_the_newest_is_the_one_with_most_steps(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert latest_checkpoint(tmp_path) is None
    for step in (99_999_999, 100_000_000):
        write_checkpoint(tmp_path, moment(step, {}), config(), {})
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_100000000.pt"


def short(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", short, lambda c: bytes(len(c)), lambda _: b"words\n", lambda c: c[9:]]
)
def test_a_damaged_one_is_named_and_what_to_do_instead(damage: Any, tmp_path: Path) -> None:
    settings = config()
    for step in (7, 8):
        path = write_checkpoint(tmp_path, moment(step, STATE), settings, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as raised:
        read_checkpoint(path, settings)
    assert f"where: {path}" in str(raised.value)
    assert f"{path.stat().st_size:,} bytes" in str(raised.value)
    assert "continues from step_00000007.pt" in str(raised.value)
    path.with_name("step_00000009.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"continues from step_00000007\.pt"):  # not from one that may be damaged, too
        read_checkpoint(path, settings)
    (tmp_path / "checkpoints" / "step_00000007.pt").unlink()
    with pytest.raises(DataError, match="begins the run from the start"):
        read_checkpoint(path, settings)


def test_a_disk_that_does_not_answer_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path, moment(1, STATE), config(), {})

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(MachineError, match=r"step_00000001.pt"):
        read_checkpoint(path, config())
    monkeypatch.setattr(Path, "iterdir", broken)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(MachineError, match="checkpoints"):
        latest_checkpoint(tmp_path)


def test_another_kind_of_file_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError, match="of this version"):
        read_checkpoint(tmp_path / "step_1.pt", config())


def test_a_run_without_a_checkpoint_cannot_be_measured(tmp_path: Path) -> None:
    write_config(config(), tmp_path / "config.yaml")
    with pytest.raises(DataError, match=r"no checkpoint yet(.|\n)*--resume"):
        load_trained(tmp_path)


def test_names_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    settings = load_config(settings={"data": {"real": {os.fsdecode(b"/caf\xe9"): 1}}})
    run = tmp_path / os.fsdecode(b"\xe9")
    run.mkdir()
    path = write_checkpoint(run, moment(1, STATE), settings, {})
    assert read_checkpoint(path, settings)["config"] == plain(settings)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_checkpoint_that_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoints" / "step_00000004.pt"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*not a regular file"):
        read_checkpoint(path, config())
