"""Several ranks, each a process of its own, joined by gloo; the oracle is one process, and a run alone."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import rank_process
import torch
from small_runs import assert_same, quiet, settings, state

from fastssl.config import write_config
from fastssl.errors import DeviceError, PeerLostError, UsageError
from fastssl.layers import FeaturePool
from fastssl.methods import METHODS
from fastssl.ranks import Ranks, joined
from fastssl.telemetry import read_metrics
from fastssl.train import resume_run, run
from fastssl.train.trainer import Start

CONSTANT = ["optim.schedule=constant", "train.log_every=1"]


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def run_ranks(world_size: int, script: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """The script in several ranks, as a launcher begins them."""
    common = os.environ | {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port())}
    return [
        processes.start(
            [sys.executable, script, *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]


def ended(ranks: Sequence[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str]]:
    """Exit code and words of each."""
    words = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    return [(rank.returncode, err) for rank, err in zip(ranks, words, strict=True)]


CONTOURS_ALONE = ["model.tasks=[edge]", "model.adapted_layer=conv2"]
ADVERSARY = ["model.passes=joint", "model.discriminator_norm=spectral", "loss.pushed=both"]


@pytest.mark.parametrize(
    ("names", "overrides"),
    [
        pytest.param(list(METHODS), [], id="every method"),
        pytest.param(["cross_domain"], CONTOURS_ALONE, marks=pytest.mark.soak, id="contours alone"),
        pytest.param(["cross_domain"], ADVERSARY, marks=pytest.mark.soak, id="the adversary's other forms"),
        pytest.param(["cross_domain"], ["train.accumulate=2"], marks=pytest.mark.soak, id="two batches a step"),
    ],
)
def test_gradients_are_the_mean_over_the_ranks(names: list[str], overrides: list[str], tmp_path: Path) -> None:
    """Two ranks have the two halves of one process's joint batch, each normalised by itself: the mean of both.

    Batch norms use the statistics of a rank's own images, so one process passes each half by itself, too. A process
    needs seconds to begin, so both ranks make a step of one method after the other.
    """
    out = tmp_path / "rank"
    ranks = run_ranks(2, Path(rank_process.__file__), ",".join(names), 4, out, *overrides)
    for code, err in ended(ranks):
        assert code == 0, err
    for name in names:
        found = [torch.load(f"{out}.{name}.{rank}", weights_only=True) for rank in (0, 1)]
        assert_gradients_are_the_mean(name, overrides, found)


def assert_gradients_are_the_mean(name: str, overrides: list[str], found: list[dict[str, Any]]) -> None:
    joint = rank_process.first_batches(rank_process.config(name, 8, *overrides))
    for domain, batch in joint.items():
        assert batch.keys == (*found[0]["keys"][domain], *found[1]["keys"][domain]), name
    alone = rank_process.config(name, 4, *overrides)
    halves = [rank_process.gradients(alone, rank_process.part(joint, rows)) for rows in (slice(4), slice(4, 8))]
    assert len(halves[0]) > 10
    assert any(not torch.allclose(first, second, rtol=0.1) for first, second in zip(*halves, strict=True))
    largest = max(gradient.norm() for gradient in halves[0])
    for mine, others, first, second in zip(found[0]["gradients"], found[1]["gradients"], *halves, strict=True):
        assert torch.equal(mine, others), name
        mean = (first.double() + second.double()) / 2
        # Sums are rounded otherwise with other threads; biases before a batch norm have no gradient but rounding.
        assert (mine - mean).norm() <= 1e-4 * mean.norm() + 1e-5 * largest, name


def launched(run: Path, coded: dict[str, Path], *more: object, ranks: int = 2, resume: bool = False) -> list[str]:
    words = ["train", "--gpus", ranks, "--out", run]
    if resume:
        return [str(word) for word in [*words, "--resume", *more]]
    config = run.with_suffix(".yaml")
    write_config(settings(coded["synthetic"], coded["real"], *CONSTANT), config)
    return [str(word) for word in [*words, "--config", config, *more]]


def fastssl(words: Sequence[str], launcher: Sequence[object] = (sys.executable,), **options: Any) -> Any:
    return processes.start([*launcher, "-m", "fastssl", *words], stderr=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def coded(coded_synthetic: Path, coded_real: Path) -> dict[str, Path]:
    return {"synthetic": coded_synthetic, "real": coded_real}


@pytest.fixture(scope="module")
def two(coded: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of two ranks through the real launcher."""
    run = tmp_path_factory.mktemp("ranks") / "two"
    words = launched(run, coded, "--set", "train.steps=6", "--set", "train.checkpoint_every=3")
    ((code, err),) = ended([fastssl(words)], 200)
    assert code == 0, err
    assert err.count("the run is in") == err.count("the first batch took") == 1
    return run


def test_two_ranks_leave_one_run(two: Path) -> None:
    assert [line["step"] for line in read_metrics(two)] == [1, 2, 3, 4, 5, 6]
    assert state(two, 6)["positions"] == {"synthetic": 6 * 2 * 4, "real": 6 * 2 * 3}
    assert len(state(two, 6)["ranks"]) == 2
    first, second = (state(two, 6)["ranks"][rank]["synthetic_pool"]["maps"] for rank in (0, 1))
    assert not torch.equal(first, second)
    rate = json.loads((two / "summary.json").read_text())["throughput"]["pairs_per_s"]
    assert rate > 0


def test_a_run_alone_takes_over_from_two(two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In this process; what comes next are the samples behind those that both ranks took."""
    run = tmp_path / "run"
    shutil.copytree(two, run)
    caplog.set_level(logging.INFO)
    resume_run(run, quiet, overrides=["train.steps=7"])
    assert caplog.text.count("goes on with 1 ranks instead of 2") == 1
    assert state(run, 7)["positions"] == {"synthetic": 13 * 4, "real": 13 * 3}
    (pools,) = state(run, 7)["ranks"]
    assert pools["synthetic_pool"]["maps"] is not None


@pytest.mark.soak
def test_two_ranks_that_validate_make_the_same_steps(two: Path, tmp_path: Path, coded: dict[str, Path]) -> None:
    """One measures and the other waits; also where the best checkpoint is written between the others."""
    run = tmp_path / "run"
    held_out = [f"--validation-{name}={path}" for name, path in coded.items()]
    changes = ("steps=6", "checkpoint_every=3", "validate_every=1", "best_by=probe/rankme")
    words = launched(run, coded, *held_out, *(word for change in changes for word in ("--set", f"train.{change}")))
    ((code, err),) = ended([fastssl(words)], 200)
    assert code == 0, err
    assert err.count("are those of the training, and not held out") == 2
    lines = read_metrics(run)
    assert all({"val/probe/rankme", "val/tasks/depth/abs_rel"} <= line.keys() for line in lines)
    best = max(lines, key=lambda line: line["val/probe/rankme"])
    assert torch.load(run / "checkpoints" / "best.pt", weights_only=True)["step"] == best["step"]
    assert_same(state(two, 6), state(run, 6))


@pytest.mark.soak
def test_two_ranks_go_on_as_if_undisturbed(two: Path, tmp_path: Path, coded: dict[str, Path]) -> None:
    run = tmp_path / "run"
    shutil.copytree(two, run)
    (run / "checkpoints" / "step_00000006.pt").unlink()
    ((code, err),) = ended([fastssl(launched(run, coded, resume=True))], 200)
    assert code == 0, err
    assert_same(state(two, 6), state(run, 6))


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_goes_on_with_another_number_of_ranks(
    two: Path, tmp_path: Path, coded: dict[str, Path], ranks: int
) -> None:
    """From the position where it was, so that no sample is left out or comes twice."""
    run = tmp_path / "run"
    shutil.copytree(two, run)
    words = launched(run, coded, "--set", "train.steps=8", ranks=ranks, resume=True)
    ((code, err),) = ended([fastssl(words)], 200)
    assert code == 0, err
    assert err.count(f"goes on with {ranks} ranks instead of 2") == 1
    assert state(run, 8)["positions"] == {"synthetic": (6 * 2 + 2 * ranks) * 4, "real": (6 * 2 + 2 * ranks) * 3}
    assert len(state(run, 8)["ranks"]) == ranks
    assert all(pools["synthetic_pool"]["maps"] is not None for pools in state(run, 8)["ranks"])


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in found]


def has_lines(run: Path) -> Callable[[], bool]:
    metrics = run / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.stat().st_size > 0


@pytest.mark.soak
def test_a_rank_that_is_killed_ends_all_with_one_error(tmp_path: Path, coded: dict[str, Path]) -> None:
    run = tmp_path / "run"
    process = fastssl(launched(run, coded, "--set", "train.steps=100000"))
    until(has_lines(run), process)
    ranks = [child for child in children(process) if b"fastssl" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(ranks) == 2
    started = time.monotonic()
    os.kill(max(ranks), signal.SIGKILL)
    ((code, err),) = ended([process], 60)
    assert time.monotonic() - started < 30
    assert code == 4
    assert err.count("error:") == 1
    assert re.search(r"error: a rank was killed\n  where: rank [01]\n  seen: SIGKILL", err)
    assert "Traceback" not in err
    for rank in ranks:
        assert not Path(f"/proc/{rank}").exists()


@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_all_ranks_at_one_step(
    tmp_path: Path, coded: dict[str, Path], number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = fastssl(launched(run, coded, "--set", "train.steps=100000"))
    until(has_lines(run), process)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do
    ((found, err),) = ended([process], 60)
    assert found == code, err
    assert err.count("stopped by") == 1
    assert "Traceback" not in err
    reached = int(err.partition("after step ")[2].partition(",")[0])
    assert max(int(path.stem[5:]) for path in (run / "checkpoints").glob("*.pt")) == reached


@pytest.mark.soak
def test_a_launcher_that_is_killed_stops_its_ranks(tmp_path: Path, coded: dict[str, Path]) -> None:
    """They get SIGTERM of the system, and leave a checkpoint of the same step."""
    run = tmp_path / "run"
    process = fastssl(launched(run, coded, "--set", "train.steps=100000"))
    until(has_lines(run), process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not (run / "summary.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ended_at = json.loads((run / "summary.json").read_text())["ended"]
    assert ended_at["how"] == "stopped"
    assert state(run, ended_at["step"])["positions"]["synthetic"] == ended_at["step"] * 2 * 4


@pytest.mark.soak
def test_an_error_of_a_rank_is_told_once(tmp_path: Path, coded: dict[str, Path]) -> None:
    run = tmp_path / "run"
    words = launched(run, coded, "--set", "train.steps=8", "--set", "optim.lr=1e30")
    ((code, err),) = ended([fastssl(words)], 120)
    assert code == 2
    assert err.count("error:") == 1
    assert "loss is not finite" in err
    assert "Traceback" not in err


@pytest.mark.soak
def test_torchrun_and_two_machines_begin_ranks_too(two: Path, tmp_path: Path, coded: dict[str, Path]) -> None:
    """The same steps, whoever begins the ranks: torchrun with two of them, and two launchers with one each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    config = ["--set", "train.steps=6", "--set", "train.checkpoint_every=3"]
    run = tmp_path / "torchrun"
    words = launched(run, coded, *config)
    ((code, err),) = ended([fastssl(words, [*torchrun, "--nproc-per-node", "2", "--standalone"])], 200)
    assert code == 0, err
    assert_same(state(two, 6), state(run, 6))
    run = tmp_path / "machines"
    words = launched(run, coded, *config)
    endpoint = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    endpoint += ["--rdzv-endpoint", f"localhost:{port()}"]
    alike = os.environ | {"OMP_NUM_THREADS": "1"}  # as launchers of two ranks set it; sums are rounded by it
    both = [fastssl(words, [*torchrun, *endpoint], env=alike) for _ in range(2)]
    for code, err in ended(both, 200):
        assert code == 0, err
    assert_same(state(two, 6), state(run, 6))


@pytest.mark.soak
def test_ranks_with_different_settings_are_refused(two: Path, tmp_path: Path, coded: dict[str, Path]) -> None:
    words = launched(tmp_path / "run", coded, "--set", "train.steps=2")
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port())}
    ranks = [
        fastssl([*words, "--set", f"train.seed={rank}"], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    found = ended(ranks)
    assert [code for code, _ in found] == [2, 2]
    assert "".join(err for _, err in found).count("different settings") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_who_is_left_alone_tells_it(tmp_path: Path, coded: dict[str, Path]) -> None:
    """Where no launcher tells of the rank that was killed, and ends the others."""
    run = tmp_path / "run"
    words = launched(run, coded, "--set", "train.steps=100000")
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port())}
    ranks = [fastssl(words, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
    until(has_lines(run), ranks[0])
    ranks[1].kill()
    ((code, err),) = ended(ranks[:1], 60)
    assert code == 4
    assert err.count("error: another rank has ended") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (torch.AcceleratorError("an illegal memory access"), torch.AcceleratorError),
        (torch.distributed.DistBackendError("NCCL error: unhandled system error"), DeviceError),
        (RuntimeError("Connection closed by peer"), PeerLostError),
    ],
)
def test_an_error_of_one_s_own_is_not_taken_for_another_rank_s(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    """GPUs tell of their errors in whatever is called next."""

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.distributed, "all_reduce", fails)
    with pytest.raises(told) as raised:
        Ranks(world_size=2, control=object()).average([torch.zeros(1)])
    assert type(raised.value) is told
    assert str(error) in str(raised.value)


def test_ranks_with_different_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may hold copies of their own under one name."""
    start, texts = Start(step=3, positions={"synthetic": 24}), list[str]()
    monkeypatch.setattr(Ranks, "same", lambda ranks, text: texts.append(text) is not None)
    places = (("a", start, 9), ("b", start, 9), ("a", replace(start, step=4), 9), ("a", start, 8))
    for fingerprint, begin, end in places:
        with pytest.raises(UsageError, match="different datasets, or begin at different steps"):
            run._check_alike(Ranks(rank=1, world_size=2), {"synthetic": fingerprint}, begin, end)
    assert len(set(texts)) == len(places)
    monkeypatch.undo()
    run._check_alike(Ranks(), {"synthetic": "a"}, start, 9)


@pytest.mark.parametrize(("slurm", "number"), [(True, 0), (False, None)])
def test_a_task_that_sees_its_own_gpu_alone_takes_it(
    monkeypatch: pytest.MonkeyPatch, slurm: bool, number: int | None
) -> None:
    taken = list[int]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(run, "bind_to_gpu", taken.append)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_LOCALID", "3")
    with nullcontext() if slurm else pytest.raises(DeviceError, match="fewer GPUs than ranks"):
        assert run.run_device(3) == torch.device("cuda", 0)
    assert taken == ([0, 0] if slurm else [])


def test_a_process_that_nobody_began_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as ranks:
        assert ranks == Ranks()
    assert ranks.largest([3, 1]) == [3, 1]
    assert ranks.total([0.5]) == [0.5]
    assert ranks.gathered("a") == ["a"]
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="rank 2 of 2"), joined("cpu"):
        pass


def test_maps_are_dealt_out_among_other_ranks() -> None:
    """Five maps of two ranks for three: in turn, none twice, none lost while there is room."""
    pools = [FeaturePool(4, torch.Generator().manual_seed(rank)) for rank in (0, 1)]
    pools[0].mix(torch.arange(3.0).view(3, 1, 1, 1))
    pools[1].mix(torch.arange(3.0, 5).view(2, 1, 1, 1))
    states = [pool.state_dict() for pool in pools]
    dealt = []
    for rank in range(3):
        pool = FeaturePool(4, torch.Generator().manual_seed(9))
        pool.load_states(states, rank=rank, world_size=3)
        maps = pool.state_dict()["maps"]
        dealt.append(maps.flatten().tolist())
    assert dealt == [[0, 3], [1, 4], [2]]
    alone = FeaturePool(2, torch.Generator())
    alone.load_states(states, rank=0, world_size=1)
    assert alone.state_dict()["maps"].flatten().tolist() == [0, 1]
