"""A dataset of ten million samples: how long it takes to open, and how much memory it and its order need.

    python benchmarks/ten_million.py [--samples 10000000] [--repeats 5] [--data DIR]

What is real: a manifest of 10,000 shards, and their indexes, a file of its own each, 0.8 GB in all; and the batches,
which are read from the shards, decoded, and found to hold the samples that were due. What is not: 1,000 labelled
samples of 32 x 32 pixels are packed once, and every shard is that archive under another name (a hard link). So keys
repeat from shard to shard, the bytes of images come out of the system's cache, and the manifest's statistics are those
of one shard.

Each try is a process of its own, which opens the dataset by `fastssl.load` after the system has been told to forget the
indexes, and takes a batch: once the first of the first epoch, once one that lies across the border of two epochs.
Memory is the process's resident memory less that after all imports. Medians go to `results/ten_million.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from conditions import write_result

from fastssl.batch import Intrinsics, Record
from fastssl.loader import load, open_mixture
from fastssl.shards import DomainName, pack

SIDE, PER_SHARD, BATCH = 32, 1000, 64
MIB = 2**20


class TinyRooms:
    """Random images before a wall; a `fastssl.shards.Source`."""

    layout, labelled, licence, subset, path = "tiny", True, "CC0-1.0", None, Path("tiny")
    domain: DomainName = "synthetic"

    def references(self) -> Iterator[str]:
        return map(str, range(PER_SHARD))

    def key(self, reference: str) -> str:
        return f"room_{int(reference):09d}"

    def read(self, reference: str) -> Record:
        coarse = np.random.default_rng(int(reference)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        normal = np.zeros((SIDE, SIDE, 3), np.float32)
        normal[..., 2] = -1
        return Record(
            key=self.key(reference),
            image=np.ascontiguousarray(coarse.repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)),
            depth=np.full((SIDE, SIDE), 1 + int(reference) / 1000, np.float32),
            normal=normal,
            instance=np.zeros((SIDE, SIDE), np.int32),
            camera=Intrinsics(fx=SIDE, fy=SIDE, cx=SIDE / 2, cy=SIDE / 2),
        )


def make(folder: Path, samples: int) -> None:
    """Pack one shard, and let all others be that one; the manifest comes last."""
    shutil.rmtree(folder, ignore_errors=True)
    pack(TinyRooms(), folder, size=SIDE, samples_per_shard=PER_SHARD)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").unlink()
    (first,) = manifest["shards"]
    names = [f"{number:06d}" for number in range(samples // PER_SHARD)]
    beside = {suffix: (folder / f"000000.{suffix}").read_bytes() for suffix in ("idx", "crc")}
    for name in names[1:]:
        os.link(folder / first["name"], folder / f"{name}.tar")
        for suffix, content in beside.items():
            (folder / f"{name}.{suffix}").write_bytes(content)
    manifest["samples"] = samples
    manifest["shards"] = [{**first, "name": f"{name}.tar"} for name in names]
    os.sync()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def forget_indexes(folder: Path) -> None:
    """Ask the system to drop the indexes from its cache, so that they are read from the disk."""
    for path in folder.glob("*.idx"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure(folder: Path, first: int, fingerprint: str) -> dict[str, Any]:
    """Open the dataset in this process, and take the batch that begins at a position of the sequence.

    Raises:
        ValueError: the samples of the batch are not those of the order.
    """
    state = {"position": first, "fingerprint": fingerprint} if first else None
    before = resident("VmRSS")
    # Linux: the largest resident size is counted anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    with timed() as opening:
        batches = load(folder, batch_size=BATCH, size=SIDE, window=(1.0, 1.0), state=state)
    opened, opened_peak = resident("VmRSS"), resident("VmHWM")
    with timed() as taking, batches:
        batch = next(batches)
        after, peak = resident("VmRSS"), resident("VmHWM")
    found = 1000 * (batch.depth.mean(dim=(1, 2, 3)).numpy() - 1)
    expected = open_mixture(folder).order(seed=0, stream=0).samples(first, BATCH) % PER_SHARD
    if not np.allclose(found, expected, atol=0.01):
        raise ValueError(f"samples {found} were read, where {expected} were due")
    sizes = {"opened": opened, "opened_peak": opened_peak, "batch": after, "peak": peak}
    return {
        "open": opening,
        "batch": taking,
        "mib": {name: (size - before) / MIB for name, size in sizes.items()},
        "fingerprint": batches.state_dict()["fingerprint"],
    }


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds that pass inside the block, and seconds that this process works."""
    found: dict[str, float] = {}
    started, worked = time.perf_counter(), time.process_time()
    yield found
    found |= {"s": time.perf_counter() - started, "cpu_s": time.process_time() - worked}


def resident(field: str) -> int:
    """Bytes of this process in memory: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def one_try(folder: Path, first: int, fingerprint: str) -> dict[str, Any]:
    forget_indexes(folder)
    command = [sys.executable, __file__, "--data", str(folder), "--measure", str(first), "--fingerprint", fingerprint]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def summary(tries: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and greatest of each number."""
    return {
        part: {
            name: {"median": statistics.median(values), "max": max(values)}
            for name in tries[0][part]
            for values in [[one[part][name] for one in tries]]
        }
        for part in ("open", "batch", "mib")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000, help=f"rounded down to shards of {PER_SHARD}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-ten-million")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fingerprint", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.data, given.measure, given.fingerprint)))
        return
    samples = given.samples // PER_SHARD * PER_SHARD
    folder = given.data / str(samples)
    if not (folder / "manifest.json").exists():
        make(folder, samples)
    tries: dict[str, list[dict[str, Any]]] = {"first": [], "border": []}
    fingerprint = ""
    for _ in range(given.repeats):
        for name, first in (("first", 0), ("border", samples - BATCH // 2)):
            tries[name].append(one_try(folder, first, fingerprint))
            fingerprint = tries[name][-1]["fingerprint"]
    result = {"samples": samples, "repeats": given.repeats, **{name: summary(found) for name, found in tries.items()}}
    print(json.dumps(result, indent=2))
    if given.samples == parser.get_default("samples"):
        print(f"written to {write_result('ten_million', result)}")


if __name__ == "__main__":
    main()
