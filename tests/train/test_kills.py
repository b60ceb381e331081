"""Trainings that are killed or asked to stop at random moments, or whose disk is full; each ends as if undisturbed.

Minutes each: `make soak` runs them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from small_runs import assert_same, quiet, settings, state

from fastssl.config import write_config
from fastssl.errors import FastsslError
from fastssl.methods import read_config
from fastssl.telemetry import read_metrics
from fastssl.train import resume_run, start_run
from fastssl.train.checkpoint import newest_sound_checkpoint, read_checkpoint

pytestmark = pytest.mark.soak

MOMENTS = 10
STEPS = 600


@pytest.fixture(scope="module")
def config(coded_synthetic: Path, coded_real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint each second step, so that most moments are within the writing of one."""
    file = tmp_path_factory.mktemp("kills") / "config.yaml"
    words = [f"train.steps={STEPS}", "train.checkpoint_every=2", "train.log_every=1", "train.threads=1"]
    write_config(settings(coded_synthetic, coded_real, *words, "train.prefetch=1"), file)
    return file


def begin(run: Path, config: Path, ranks: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "fastssl", "train", "--out", run, "--gpus", ranks]
    words += ["--resume"] if (run / "config.yaml").exists() else ["--config", config]
    return processes.start(words, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A run of so many ranks that nobody disturbs, made once."""
    made: dict[int, Path] = {}

    def run(ranks: int) -> Path:
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp("undisturbed") / "run"
            process = begin(made[ranks], config, ranks)
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
        return made[ranks]

    return run


def losses(run: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name == "step" or name.startswith("loss/")}
        for line in read_metrics(run)
    ]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_moment_costs_more_than_itself(
    undisturbed: Callable[[int], Path],
    config: Path,
    tmp_path: Path,
    number: signal.Signals,
    ranks: int,
    record_property: Callable[[str, object], None],
) -> None:
    run, rng, reached = tmp_path / "run", random.Random(int(number) * ranks), list[int]()
    expected = undisturbed(ranks)
    for _ in range(MOMENTS):
        process = begin(run, config, ranks)
        lines = len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0
        if rng.random() < 0.8:
            wait_for_lines(process, run, lines)
        elif number == signal.SIGTERM:  # while it starts, but not before the command is there at all
            wait_until_caught(process, number)
        time.sleep(rng.uniform(0, 0.6))
        started = time.monotonic()
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        if number == signal.SIGTERM:
            assert time.monotonic() - started < 20
            assert process.returncode == 0
        reached.append(sound_steps(run))
    assert reached == sorted(reached)
    assert reached[-1] < STEPS, "it was finished before the last moment"
    record_property("reached", reached)
    process = begin(run, config, ranks)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert losses(run) == losses(expected)
    assert_same(state(run, STEPS), state(expected, STEPS))


def wait_until_caught(process: subprocess.Popen[str], number: signal.Signals) -> None:
    caught = 0
    while not caught >> (number - 1) & 1:
        assert process.poll() is None
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
        time.sleep(0.01)


def wait_for_lines(process: subprocess.Popen[str], run: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) <= lines:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sound_steps(run: Path) -> int:
    """The steps of the newest checkpoint, which loads; 0 where there is none at all."""
    if not list((run / "checkpoints").glob("step_*.pt")):
        return 0
    content = newest_sound_checkpoint(run, read_config(run / "config.yaml"))
    assert content is not None
    return int(content["step"])


@contextmanager
def small_disk(place: Path, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of this size; what it gives makes it another."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", place], check=False)
    if done.returncode:
        pytest.skip("needs the right to mount a file system")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_and_kills_cost_no_checkpoint_that_was_there(
    undisturbed: Callable[[int], Path], config: Path, tmp_path: Path
) -> None:
    """The disk has room for two checkpoints and a half, three are to be kept, and kills come on top."""
    expected, rng = undisturbed(1), random.Random(0)
    size = max(path.stat().st_size for path in (expected / "checkpoints").glob("*.pt"))
    with small_disk(tmp_path / "disk", 5 * size // 2) as resize:
        run, words = tmp_path / "disk" / "run", ""
        for _ in range(5):
            lines = len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0
            process = begin(run, config, 1)
            wait_for_lines(process, run, lines + 5)
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
            words += process.communicate(timeout=60)[1]
            assert sound_steps(run) > 0
        assert "a checkpoint could not be written, and the training goes on" in words
        resize(40 * size)
        process = begin(run, config, 1)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert_same(state(run, STEPS), state(expected, STEPS))


@pytest.mark.timeout(600)
def test_a_checkpoint_that_is_cut_anywhere_is_passed_over(undisturbed: Callable[[int], Path], tmp_path: Path) -> None:
    """As after a power cut; the one before it is taken, and the run ends as undisturbed."""
    expected, rng = undisturbed(1), random.Random(1)
    torch.set_num_threads(1)  # as it had; sums are rounded by it
    for number in range(5):
        run = tmp_path / f"run{number}"
        shutil.copytree(expected, run)
        newest = run / "checkpoints" / f"step_{STEPS:08d}.pt"
        content = bytearray(newest.read_bytes())
        cut = rng.randrange(len(content))
        newest.write_bytes(content[:cut] if number % 2 else content[:cut] + bytes(len(content) - cut))
        with pytest.raises(FastsslError):
            read_checkpoint(newest, read_config(run / "config.yaml"))
        resume_run(run, quiet)
        assert_same(state(run, STEPS), state(expected, STEPS))


SAMPLE = Path(__file__).parents[2] / "shards" / "sample"


@pytest.mark.timeout(3600)
def test_five_thousand_steps_take_no_more_memory_and_checkpoints_cost_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Of the demo's setting: memory after the last steps is within 2 % of that after the first thousand."""
    from fastssl.methods import load_config
    from fastssl.train.trainer import Trainer

    stalls, memory = list[float](), dict[int, float]()
    save = Trainer._save

    def timed(self: Trainer, *arguments: Any, **options: Any) -> None:
        started = time.perf_counter()
        save(self, *arguments, **options)
        stalls.append(time.perf_counter() - started)

    def noted(done: int, total: int | None = None, words: str = "") -> None:
        if done % 500 == 0:
            memory[done] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    monkeypatch.setattr(Trainer, "_save", timed)
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}"]
    started = time.perf_counter()
    start_run(load_config("tiny", overrides=[*paths, "train.steps=5000"]), tmp_path / "run", noted)
    seconds = time.perf_counter() - started
    record_property("memory_mib", memory)
    record_property("stall_fraction", sum(stalls) / seconds)
    sys.stdout.write(f"{seconds:.0f} s; MiB {memory}; checkpoints take {sum(stalls) / seconds:.3%} of the time\n")
    assert len(stalls) == 20
    assert sum(stalls) < 0.01 * seconds
    assert max(memory[step] for step in range(1000, 5001, 500)) < 1.02 * memory[1000]
