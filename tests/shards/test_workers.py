"""Workers that end with their parent, scripts without a guard, and two packings at once; all with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packing
import pytest
from analytic_rooms import RoomSource
from PIL import Image

from fastssl.errors import UsageError
from fastssl.files import alone_in
from fastssl.shards import pack
from fastssl.shards.workers import in_order


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_their_parent_and_what_they_left_does_not_disturb(tmp_path: Path) -> None:
    """Only the parent is killed, as the kernel does when memory runs out."""
    process = packing.start(tmp_path / "out", 4000, 2)
    wait_until(lambda: len(list((tmp_path / "out").glob("*.tar"))) > 1, "the packing does not begin")
    workers = children(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(map(is_running, workers)), "workers outlive their parent")


def test_a_second_packing_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path / "out", "packing"):
        for resume in (False, True):
            with pytest.raises(UsageError, match="another packing works on the folder"):
                pack(RoomSource(tmp_path, 3), tmp_path / "out", size=16, resume=resume)
    assert not list((tmp_path / "out").iterdir())
    pack(RoomSource(tmp_path, 3), tmp_path / "out", size=16)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    script = tmp_path / "script.py"
    script.write_text(
        "from fastssl.shards import pack\nfrom fastssl.sources import open_source\n"
        f"pack(open_source({str(tmp_path)!r}), {str(tmp_path / 'out')!r}, size=16, samples_per_shard=1, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the script starts itself again" in done.stderr
    assert '__name__ == "__main__"' in done.stderr
    assert done.stderr.count("Traceback") <= 2  # the parent's, with its cause


def ended(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


@pytest.mark.parametrize(
    ("how", "words"), [("killed", "SIGKILL, which is what the system does when memory"), ("exit", "code 3")]
)
def test_how_a_worker_ended_is_told(how: str, words: str) -> None:
    from fastssl.errors import DeviceError

    with pytest.raises(DeviceError, match=words):
        list(in_order(ended, [how, how], workers=2))
