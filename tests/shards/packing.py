"""A packing of rooms in a process of its own, which a test may kill: `python packing.py OUT COUNT WORKERS [RAY]`."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

SHARD = 3


def start(out: Path, count: int, workers: int, ray: str = "", *, height: int = 24) -> subprocess.Popen[str]:
    """Begin to pack in a process group of its own, or continue what is in `out`."""
    import processes

    return processes.start(
        [sys.executable, __file__, out, count, workers, height, ray],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"},
    )


def kill(process: subprocess.Popen[str]) -> bool:
    """Kill the packing and its workers at once; whether it was still running."""
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def digest(folder: Path) -> str:
    """Of all names and contents."""
    sha256 = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sha256.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return sha256.hexdigest()


def main() -> None:
    from analytic_rooms import RoomSource

    from fastssl.shards import pack

    out, count, workers, height, ray = sys.argv[1:]
    source = RoomSource(Path("rooms"), int(count), height=int(height), width=2 * int(height), trouble="bad", at=4)
    pack(source, out, size=32, samples_per_shard=SHARD, workers=int(workers), ray=ray or None, resume=True)


if __name__ == "__main__":
    main()
