"""The Slurm script, with stand-ins for Slurm's own commands and a real training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from small_runs import SMALL

from fastssl.runs import find_runs
from fastssl.telemetry import read_metrics

SCRIPT = Path(__file__).parents[2] / "tools" / "train.slurm"
SCONTROL = """#!/bin/bash
echo "$@" >> "$CALLS"
if [ "$1" = show ]; then echo localhost; fi
"""
SRUN = """#!/bin/bash
# One task, whose process everybody can find, as Slurm would signal it.
export SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0
echo $$ > "$TASK"
exec "$@"
"""


def job(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The script as Slurm begins it."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, content in (("scontrol", SCONTROL), ("srun", SRUN)):
        (commands / name).write_text(content)
        (commands / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": sys.executable, "RUN": str(folder / "run"),
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localhost",
        "CALLS": str(folder / "calls"), "TASK": str(folder / "task"),
    }  # fmt: skip
    return processes.start(["bash", SCRIPT, *words], stderr=subprocess.PIPE, env=environment)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.soak
def test_a_job_before_its_limit_is_stopped_requeued_and_finished(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    words = ["--preset", "tiny", "--synthetic", str(coded_synthetic), "--real", str(coded_real)]
    words += [word for setting in (*SMALL, "train.steps=300", "train.log_every=1") for word in ("--set", setting)]
    first = job(tmp_path, *words)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or not metrics.stat().st_size:
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert calls(tmp_path) == ["show hostnames localhost", "requeue 4711"]
    assert [run.state for run in find_runs(tmp_path)] == ["stopped"]
    reached = read_metrics(tmp_path / "run")[-1]["step"]
    assert 0 < reached < 300

    second = job(tmp_path, *words)  # the very command, as a requeued job has it
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert calls(tmp_path)[2:] == ["show hostnames localhost"]
    assert [run.state for run in find_runs(tmp_path)] == ["finished"]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 301))
