"""Packing, beside webdataset's ShardWriter, litdata's optimize and MosaicML Streaming's MDSWriter.

    python benchmarks/packing.py [--peers PEERS/bin/python] [--samples 6000] [--repeats 5] [--workers 2] [--data FOLDER]

All do the same to the same files (`four_planes.py`) with as many processes: decode the JPEG and the PNGs of depth,
normals and instances (320 x 240), stretch them to 256 x 256 (Lanczos, nearest pixel), take contours from the instances,
and write a JPEG of quality 95 and the targets into shards. The peers store these as PNG, which is what their users
do. Each run is a command of its own and counts from its start to its end, so what a tool loads is part of its time; its
CPU time is that of all its processes, its memory the largest sum of their resident sizes. Files of as many samples as
`--files` says are used over and over.

`--memory-samples` tells how many tiny images (32 pixels) show that memory does not grow with their number, against as
many as `--samples`; 0 leaves that out. FFCV's bytes are those of its format: the same JPEG beside raw planes.

The peers need an environment of their own, for they and fastssl want different versions of NumPy:

    python -m venv PEERS
    PEERS/bin/pip install webdataset litdata mosaicml-streaming opencv-python-headless pillow

Without `--peers`, fastssl is measured alone. The figures go into `results/packing.json`, the table to the terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from conditions import write_result
from four_planes import write_four_planes

from fastssl.shards import JPEG, read_manifest

HERE = Path(__file__).parent
SIZE = 256
FFCV_TARGET_BYTES = SIZE * SIZE * (2 + 3 + 1)
"""Depth in 16 bits, three normal coordinates and the contours in 8 bits each, as raw planes."""
PEERS = {
    "ShardWriter": ("webdataset", "opencv"),
    "litdata": ("litdata", "opencv"),
    "MDSWriter": ("mosaic", "opencv"),
    "ShardWriter, Pillow": ("webdataset", "pillow"),
}
"""Title, and what `packing_peers.py` is asked for."""
OURS = "fastssl"


@dataclass
class Runs:
    """Of one tool, an entry per repeat."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    bytes: int = 0
    """Of all files that were written."""


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="packing-") as scratch:
        data = Path(scratch) / "data" if given.data is None else given.data
        write_four_planes(data, min(given.files, given.samples))
        commands = tools(data, given.samples, given.workers, given.peers)
        out = Path(scratch) / "out"
        measured_run([*commands[OURS], str(out)])  # compiles, where this machine has never packed
        jpeg_bytes = read_manifest(out).statistics.member_bytes[JPEG].total / given.samples
        runs = {title: Runs() for title in commands}
        for repeat in range(given.repeats):
            for title, command in commands.items():
                add_run(runs[title], command, out)
                rate = given.samples / runs[title].seconds[-1]
                print(f"{repeat + 1}/{given.repeats}  {title}: {rate:.0f} samples/s", file=sys.stderr)
        memory = memory_growth(Path(scratch), [given.samples, given.memory_samples], given.workers)
    report(given, runs, jpeg_bytes, memory)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the Python of the environment with the peers")
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--memory-samples", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="where the samples are, or go; a temporary folder if not given")
    return parser.parse_args()


def tools(data: Path, samples: int, workers: int, peers: Path | None) -> dict[str, list[str]]:
    """The command of each tool, to which the output folder is added."""
    what = [str(data), str(samples), str(workers)]
    commands = {OURS: [sys.executable, str(HERE / "packing_fastssl.py"), *what]}
    if peers is not None:
        for title, names in PEERS.items():
            commands[title] = [str(peers), str(HERE / "packing_peers.py"), *names, *what]
    return commands


def add_run(runs: Runs, command: list[str], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    run = measured_run([*command, str(out)])
    runs.seconds.append(run.seconds)
    runs.cpu_seconds.append(run.cpu_seconds)
    runs.peak_bytes.append(run.peak_bytes)
    runs.bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


class Measured(NamedTuple):
    seconds: float
    """From start to end."""
    cpu_seconds: float
    peak_bytes: int
    """The largest sum of resident bytes of the process and its descendants."""


def measured_run(command: list[str]) -> Measured:
    before = cpu_seconds()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        watch = MemoryWatch(process.pid)
        _, words = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{words}")
    return Measured(seconds, cpu_seconds() - before, watch.peak)


def cpu_seconds() -> float:
    """Of all commands that have ended, with their descendants."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class MemoryWatch:
    """Follows the resident memory of a process and its descendants until it ends."""

    PERIOD = 0.1

    def __init__(self, pid: int) -> None:
        self.peak = 0
        threading.Thread(target=self._run, args=(pid,), daemon=True).start()

    def _run(self, pid: int) -> None:
        while (resident := resident_bytes(pid)) > 0:
            self.peak = max(self.peak, resident)
            time.sleep(self.PERIOD)


def resident_bytes(pid: int) -> int:
    """Of a process and its descendants; 0 if it has ended. Pages that they share count in each."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        total = sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(resident_bytes(int(child)) for child in children.read_text(encoding="ascii").split())
    return total


def memory_growth(scratch: Path, numbers: list[int], workers: int) -> dict[int, int]:
    """Peak bytes of packing so many tiny images, by their number."""
    if not numbers[-1]:
        return {}
    tiny, out = scratch / "tiny", scratch / "tiny-out"
    write_four_planes(tiny, 50, height=24, width=32)
    peaks = {}
    for samples in numbers:
        command = tools(tiny, samples, workers, None)[OURS]
        shutil.rmtree(out, ignore_errors=True)
        peaks[samples] = measured_run([*command, str(out), "--size", "32"]).peak_bytes
    return peaks


def report(given: argparse.Namespace, runs: dict[str, Runs], jpeg_bytes: float, memory: dict[int, int]) -> None:
    ffcv = jpeg_bytes + FFCV_TARGET_BYTES
    rates = {title: [given.samples / seconds for seconds in run.seconds] for title, run in runs.items()}
    ours = statistics.median(rates[OURS])
    print("| | samples/s | fastssl's ratio | CPU ms per sample | bytes per sample | peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for title, run in runs.items():
        rate = statistics.median(rates[title])
        print(
            f"| {title} | {rate:.0f} ({min(rates[title]):.0f} to {max(rates[title]):.0f}) | {ours / rate:.2f} "
            f"| {1000 * statistics.median(run.cpu_seconds) / given.samples:.1f} | {run.bytes / given.samples:.0f} "
            f"| {max(run.peak_bytes) / 2**20:.0f} MiB |"
        )
    fraction = runs[OURS].bytes / given.samples / ffcv
    print(f"\nFFCV's format, JPEG and raw planes: {ffcv:.0f} bytes per sample, of which fastssl's are {fraction:.1%}")
    for samples, peak in memory.items():
        print(f"peak memory of packing {samples} tiny images: {peak / 2**20:.0f} MiB")
    path = write_result(
        "packing",
        {
            "samples": given.samples,
            "files": given.files,
            "workers": given.workers,
            "samples_per_s": rates,
            "cpu_seconds": {title: run.cpu_seconds for title, run in runs.items()},
            "bytes_per_sample": {title: run.bytes / given.samples for title, run in runs.items()},
            "peak_bytes": {title: run.peak_bytes for title, run in runs.items()},
            "ffcv_bytes_per_sample": ffcv,
            "peak_bytes_of_tiny_images": memory,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
