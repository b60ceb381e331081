"""Metrics as a reader sees them, also torn; progress and log where nobody looks."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fastssl import telemetry
from fastssl.errors import DataError, MachineError
from fastssl.telemetry import MetricsWriter, gpu_readings, log_to_stderr, merge_summary, progress_bar, read_metrics


def test_metrics_reach_json_lines(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, {"loss/depth": 0.5, "lr": 1e-3})
        metrics.write(20, {"loss/depth": 0.25, "lr": 1e-3})
    assert [line["loss/depth"] for line in read_metrics(tmp_path)] == [0.5, 0.25]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (10, 20, 30):
            metrics.write(step, {"loss/depth": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss/de')  # a kill in the middle of a line
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    with MetricsWriter(tmp_path, first_step=20) as metrics:
        metrics.write(30, {"loss/depth": -1})
    assert [(line["step"], line["loss/depth"]) for line in read_metrics(tmp_path)] == [(10, 10), (20, 20), (30, -1)]


def test_a_section_of_the_summary_is_replaced_whole(tmp_path: Path) -> None:
    """Numbers of other data must not stand beside new ones."""
    merge_summary(tmp_path, {"tasks": {"depth": 1}, "steps": 5})
    merge_summary(tmp_path, {"tasks": {"edge": 2}, "domain": 3})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"tasks": {"edge": 2}, "steps": 5, "domain": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_names_the_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with MetricsWriter(tmp_path) as metrics:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
            metrics.write(1, {"loss": 1.0})
            metrics.write(2, {"loss": 1.0})

    try:
        with pytest.raises(MachineError, match=r"larger than is allowed(.|\n)*metrics.jsonl(.|\n)*--resume"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("the training goes on") == 1


def test_a_line_that_could_not_be_written_comes_later_and_whole(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with MetricsWriter(tmp_path) as metrics:
            metrics.write(1, {"loss": 1.0})
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 9, before[1]))
            metrics.write(2, {"loss": 2.0})
            assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            metrics.write(3, {"loss": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_metrics(tmp_path) == [{"step": step, "loss": float(step)} for step in (1, 2, 3)]


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b"\0" * 512, b'\0\0{"step": 2}', b'{"a": "\xff"}'])
def test_torn_lines_are_left_out_and_counted(torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + torn + b'\n{"step": 3}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]
    assert f"{tmp_path}/metrics.jsonl: 1 of 3 lines are torn" in caplog.text


def test_a_line_without_a_step_is_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(DataError, match="has no step"):
        MetricsWriter(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"tasks": ', b"\0" * 64, b"[]", b"\xff"])
def test_a_torn_summary_is_kept_aside(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    assert merge_summary(tmp_path, {"steps": 5}) == {"steps": 5}
    assert (tmp_path / "summary.json.damaged").read_bytes() == content
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 5}
    assert caplog.text.count("summary.json.damaged") == 1


def test_a_summary_that_cannot_be_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text('{"tasks": 1}')

    def broken(self: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(telemetry, "read_regular", broken)
        with pytest.raises(MachineError, match=r"summary\.json"):
            merge_summary(tmp_path, {"steps": 5})
    assert (tmp_path / "summary.json").read_text() == '{"tasks": 1}'


class Clock:
    """Set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(telemetry.time, "monotonic", lambda: self.now)


def test_without_a_terminal_there_is_a_line_each_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress_bar("packing", unit="samples") as advance:
        for second in range(100):
            clock.now = 100.0 + second
            advance(1000 + 50 * second, 10_000, "two\nwords" + "!" * 200)
        clock.now = 200.0
    # Reports at 0, 1, ..., 99 s; the first line after 5 s, the next after 30 s each, and the last report.
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",", 1)[0] + "," + line.split(",")[1].split("/")[0] for line in lines] == [
        f"packing: {count // 1000},{count % 1000:03}" for count in (1250, 2750, 4250, 5750, 5950)
    ]
    assert lines[0] == "packing: 1,250/10,000, 50 samples/s, 2 min 55 s left, two words" + "!" * 200
    assert lines[-1].startswith("packing: 5,950/10,000, 50 samples/s, 1 min 21 s left")


@pytest.mark.parametrize(("patience", "lines"), [(5.0, []), (0.0, ["training: 2/4", "training: 4/4"])])
def test_short_work_is_told_only_where_it_is_asked_for(
    patience: float, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it ends in an error."""
    clock = Clock(monkeypatch)

    def fail() -> None:
        with progress_bar("training", patience_s=patience) as advance:
            for step in (2, 3, 4):
                advance(step, 4)
                clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capsys.readouterr().err.splitlines() == lines


def test_work_without_a_report_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("working", patience_s=0):
        pass
    assert capsys.readouterr().err == ""


def test_progress_that_nobody_takes_harms_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", full)
        with progress_bar("working", patience_s=0) as advance:
            for step in range(3):
                advance(step)
        monkeypatch.undo()
        with suppress(OSError):
            full.close()


def test_a_record_is_a_line_and_says_if_it_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a_folder" * 40
    logger = logging.getLogger("fastssl")
    handlers, level = logger.handlers, logger.level
    try:
        log_to_stderr()
        logging.getLogger("fastssl.x").warning("[red]%s[/red] is damaged", path)
        logging.getLogger("fastssl.x").info("%s is read", path)
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
    assert capsys.readouterr().err == f"warning: [red]{path}[/red] is damaged\n{path} is read\n"


def test_a_record_is_a_line_in_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    logger = logging.getLogger("fastssl")
    handlers, level = logger.handlers, logger.level
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    try:
        log_to_stderr()
        logging.getLogger("fastssl.x").warning("%s is damaged", "/a_folder" * 40)
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
    assert terminal.getvalue() == f"{'/a_folder' * 40} is damaged\n"


def test_long_words_take_nothing_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns: how far, the time that is left after reports a minute apart, and all of the words."""
    screen = Console(file=StringIO(), force_terminal=True, width=80, legacy_windows=False)
    monkeypatch.setattr(telemetry, "_stderr", lambda: screen)
    now = 100.0
    monkeypatch.setattr(screen, "get_time", lambda: now)
    words = " ".join(f"loss_{number} {number}.000" for number in range(9))
    with progress_bar("training") as advance:
        for step in (10, 20, 30):
            advance(step, 40, words)
            now += 60
    assert isinstance(screen.file, StringIO)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue()).rpartition("training ")[2]
    assert "30/40 01:00" in last
    assert words in " ".join(last.split())


def test_a_name_cannot_forge_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    logging.getLogger("fastssl").warning("%s is bad: %s", "a\nerror: fake\x1b[2J", DataError("torn", where="x", seen=1))
    assert capsys.readouterr().err == "warning: a\\nerror: fake\\x1b[2J is bad: torn, where: x, seen: 1\n"


def test_lines_that_should_be_there_are_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (2, 4, 6):
            metrics.write(step, {"a": 1.0})
    MetricsWriter(tmp_path, 5, 4).__exit__(None, None, None)
    assert "lacks" not in caplog.text
    MetricsWriter(tmp_path, 8, 8).__exit__(None, None, None)
    assert "metrics.jsonl lacks lines up to step 8: the last one is 4" in caplog.text
    (tmp_path / "metrics.jsonl").write_bytes(bytes(100))  # as a power cut leaves what was never written
    MetricsWriter(tmp_path, 8, 8).__exit__(None, None, None)
    assert "lacks lines up to step 8: the last one is none" in caplog.text


def test_a_gpu_is_found_by_its_uuid_and_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts all GPUs; torch's first may be another one of them. Of a virtual one, power is not told."""
    import pynvml
    import torch

    def no_power(gpu: str) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab-cd"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", no_power)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda gpu: SimpleNamespace(gpu=40))
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu: SimpleNamespace(used=2**31 if gpu == "GPU-ab-cd" else 0)
    )
    assert gpu_readings(0) == {"gpu/utilisation_percent": 40.0, "gpu/memory_gib": 2.0}
    assert gpu_readings(1) == {}
