"""A fault of the system at any call of a packing or a training: the same bytes, or a clear stop that continues.

strace makes a real system call fail for real, once or for good, in the whole process from the moment that it looks at
its data. All of it is a matter of `make soak`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(STRACE is None, reason="needs strace")

FAULTS = {
    "openat": ("EMFILE", "EIO", "ESTALE", "ENOMEM"),
    "read": ("EIO", "ESTALE"),
    "pread64": ("EIO", "ESTALE"),
    "preadv": ("EIO", "ESTALE"),
    "newfstatat": ("EIO", "ESTALE"),
    "getdents64": ("EIO", "ESTALE"),
    "write": ("EIO", "ENOSPC"),
    "fsync": ("EIO",),
    "rename": ("EIO", "ENOSPC"),
    "mkdir": ("EIO", "ENOSPC"),
    "unlink": ("EIO",),
    "mmap": ("ENOMEM",),
}
"""Calls that are made to fail, and how."""


@dataclass(frozen=True)
class Work:
    """Something to disturb."""

    command: list[str]
    resume: list[str]
    folder: Path
    """In which it runs; what it leaves there is compared."""
    data: str
    """Calls count from the first one that names this."""
    digest: Callable[[Path], str]
    begun: Callable[[Path], bool]
    """Whether there is something to continue."""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def run(command: list[str], folder: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    traced = [str(STRACE), "-f", "-qq", "--seccomp-bpf", *strace] if strace else []
    return subprocess.run(
        [*traced, sys.executable, "-m", "fastssl", *command],
        cwd=folder, capture_output=True, text=True, check=False, env=environment(), timeout=300,
    )  # fmt: skip


def calls(work: Work, log: Path) -> dict[str, tuple[int, int]]:
    """Number of the first call and of the last of each kind that the main thread makes once it looks at its data."""
    done = run(work.command, work.folder, "-o", str(log), "-e", f"trace={','.join(FAULTS)}")
    assert done.returncode == 0, done.stderr
    counts, first = Counter[str](), dict[str, int]()
    main, begun = "", False
    with log.open(errors="replace") as lines:
        for line in lines:
            thread, _, rest = line.partition(" ")
            main = main or thread
            match = re.match(r"\s*(\w+)\(", rest)
            if thread == main and match is not None:
                counts[match[1]] += 1
                begun = begun or work.data in rest
                if begun:
                    first.setdefault(match[1], counts[match[1]])
    return {name: (first[name], counts[name]) for name in first}


def check(work: Work, fresh: Callable[[], None], undisturbed: str, call: str, number: int, error: str, how: str) -> str:
    """Disturb the work once; how it ended, or what is wrong with that."""
    fresh()
    when = f"{number}+" if how == "for good" else str(number)
    inject = f"inject={call}:error={error}:when={when}"
    done = run(work.command, work.folder, "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
    told = f"{call} {error} {how} at {number}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    if done.returncode == 0:
        assert work.digest(work.folder) == undisturbed, f"other bytes, without a word: {told}"
        return "same bytes"
    # A library of C that gets no memory may crash, and nobody is left to tell of it.
    crashed = call == "mmap" and done.returncode < 0
    if not crashed:
        assert done.returncode == 4, told
        if (call, how) != ("write", "for good"):  # then stderr cannot be written to either
            assert "error: " in done.stderr, told
        # What comes behind the error is of libraries that load more when the interpreter ends.
        assert "Traceback" not in done.stderr.partition("error: ")[0], told
    begun = work.begun(work.folder)
    again = run(work.resume if begun else work.command, work.folder)
    assert again.returncode == 0, f"cannot be continued: {told}\n{again.stderr}"
    assert work.digest(work.folder) == undisturbed, f"continues to other bytes: {told}"
    return "crashed and continued" if crashed else "stopped and continued"


def disturb(
    work: Work, fresh: Callable[[], None], log: Path, per_kind: int, faults: Mapping[str, tuple[str, ...]]
) -> Counter[str]:
    """Make so many calls of each kind fail with each error, once and for good; how often it ended in which way."""
    fresh()
    found = calls(work, log)
    undisturbed = work.digest(work.folder)
    rng, ends, wrong = random.Random(0), Counter[str](), list[str]()
    for call in sorted(found.keys() & faults.keys()):
        first, last = found[call]
        for error in faults[call]:
            for number in sorted(rng.sample(range(first, last + 1), min(per_kind, last + 1 - first))):
                for how in ("once", "for good"):
                    try:
                        ends[check(work, fresh, undisturbed, call, number, error, how)] += 1
                    except AssertionError as failure:
                        wrong.append(str(failure))
    assert not wrong, f"{len(wrong)} of {len(wrong) + ends.total()}:\n" + "\n\n".join(wrong)
    return ends


def is_packing(folder: Path) -> bool:
    return (folder / "out" / ".packing").exists() or (folder / "out" / "manifest.json").exists()


def is_run(folder: Path) -> bool:
    return (folder / "out" / "config.yaml").exists()


def files_digest(folder: Path) -> str:
    """The hash of all that is in the output."""
    out = folder / "out"
    names = [path for path in sorted(out.rglob("*")) if path.is_file()] if out.is_dir() else []
    sha256 = hashlib.sha256()
    for path in names:
        sha256.update(str(path.relative_to(out)).encode() + path.read_bytes())
    return sha256.hexdigest()


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_a_packing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    rng = np.random.default_rng(0)
    for name in ("data/cat/1.jpg", "data/cat/2.png", "data/dog/1.tif", "data/dog/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / name)
    command = ["shard", "data", "out", "--layout", "classes", "--size", "32", "--samples-per-shard", "2"]
    work = Work(command, [*command, "--resume"], tmp_path, '"data', files_digest, is_packing)
    run(command, tmp_path)  # compiles

    def fresh() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    ends = disturb(work, fresh, tmp_path / "log", 5, FAULTS)
    record_property("ends", dict(ends))
    assert ends["stopped and continued"], ends
    assert ends["same bytes"], ends


def weights_digest(folder: Path) -> str:
    """The hash of all weights and states in the last checkpoint; "none" where there is none."""
    checkpoints = sorted((folder / "out" / "checkpoints").glob("step_*.pt"))
    if not checkpoints:
        return "none"
    content = torch.load(checkpoints[-1], weights_only=True)
    sha256 = hashlib.sha256(str(content["step"]).encode())
    waiting = [content["state"]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [value[name] for name in sorted(value, key=str)]
        elif isinstance(value, list | tuple):
            waiting += value
        else:
            sha256.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode())
    return sha256.hexdigest()


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_a_training(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "synthetic")
    shutil.copytree(coded_real, tmp_path / "real")
    settings = ["data.size=67", "data.batch_synthetic=4", "data.batch_real=4", "model.width=0.1", "train.steps=4"]
    settings += ["model.fc_channels=16", "model.head_channels=4", "train.checkpoint_every=2", "train.threads=1"]
    command = ["train", "--preset", "tiny", "--synthetic", "synthetic", "--real", "real", "--out", "out"]
    command += [word for setting in settings for word in ("--set", setting)]
    work = Work(command, ["train", "--out", "out", "--resume"], tmp_path, "/synthetic", weights_digest, is_run)
    run(command, tmp_path)

    def fresh() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    ends = disturb(work, fresh, tmp_path / "log", 1, FAULTS)
    record_property("ends", dict(ends))
    assert ends["stopped and continued"], ends
    assert ends["same bytes"], ends
