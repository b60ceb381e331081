"""A fault of the system at any call of a packing or a training: the same bytes, or a clear stop that continues.

strace makes a real system call fail for real, once or for good, in the whole process from the moment that it looks at
its data. `make soak` goes through many calls of each kind; `make test` through a few.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
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
    main = ""
    begun = False
    for line in log.open(errors="replace"):
        thread, _, rest = line.partition(" ")
        main = main or thread
        match = re.match(r"\s*(\w+)\(", rest)
        if thread != main or match is None:
            continue
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
    assert "Traceback" not in done.stderr, told
    assert done.returncode in (2, 4), told
    if (call, how) != ("write", "for good"):  # then stderr cannot be written to either
        assert "error: " in done.stderr, told
    again = run(work.resume if work.digest(work.folder) != "nothing" else work.command, work.folder)
    assert again.returncode == 0, f"cannot be continued: {told}\n{again.stderr}"
    assert work.digest(work.folder) == undisturbed, f"continues to other bytes: {told}"
    return "stopped and continued"


def disturb(work: Work, fresh: Callable[[], None], log: Path, per_kind: int) -> Counter[str]:
    fresh()
    found = calls(work, log)
    undisturbed = work.digest(work.folder)
    rng = random.Random(0)
    ends = Counter[str]()
    for call, (first, last) in found.items():
        for error in FAULTS[call]:
            for number in sorted(rng.sample(range(first, last + 1), min(per_kind, last + 1 - first))):
                for how in ("once", "for good"):
                    ends[check(work, fresh, undisturbed, call, number, error, how)] += 1
    return ends


def files_digest(folder: Path) -> str:
    """Of all that is in the output; "nothing" where there is none."""
    out = folder / "out"
    names = [path for path in sorted(out.rglob("*")) if path.is_file()] if out.is_dir() else []
    sha256 = hashlib.sha256()
    for path in names:
        sha256.update(str(path.relative_to(out)).encode() + path.read_bytes())
    return sha256.hexdigest() if names else "nothing"


@pytest.mark.parametrize("per_kind", [pytest.param(40, marks=pytest.mark.soak), 1])
@pytest.mark.timeout(5400)
def test_a_packing(tmp_path: Path, per_kind: int, record_property: Callable[[str, object], None]) -> None:
    rng = np.random.default_rng(0)
    for name in ("data/cat/1.jpg", "data/cat/2.png", "data/dog/1.tif", "data/dog/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / name)
    command = ["shard", "data", "out", "--layout", "classes", "--size", "32", "--samples-per-shard", "2"]
    work = Work(command, [*command, "--resume"], tmp_path, '"data', files_digest)
    run(command, tmp_path)  # compiles

    def fresh() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    ends = disturb(work, fresh, tmp_path / "log", per_kind)
    record_property("ends", dict(ends))
    assert ends["stopped and continued"]
    assert ends["same bytes"]
