"""Both domains read in a process of its own, which a test may kill: `loader_process.py SYNTHETIC REAL OUT STEPS`.

Every step appends a line to OUT: its number, and per domain the keys and a digest of all tensors, which tells windows,
flips and channels. A process that finds lines there goes on after the last complete one, as a run goes on after its
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastssl.batch import Batch

SIZE = 67


def read(synthetic: Path, real: Path, out: Path, steps: int) -> None:
    import torch

    from fastssl.config import AugmentConfig, DataConfig
    from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, load_batches, open_mixture

    data, augment = DataConfig(size=SIZE, window=(0.6, 1.0)), AugmentConfig(aspect=(0.9, 1.1), brightness=0.2, blur=0.3)
    options = LoaderOptions(device=torch.device("cpu"), threads=2)
    done = lines(out)
    batches = []
    for stream, (path, size) in enumerate(((synthetic, 4), (real, 3))):
        samples = open_mixture(path)
        rank_slice = RankSlice(order=samples.order(seed=8, stream=stream, buffer=5), batch_size=size)
        settings = ViewSettings(data=data, augment=augment, stored=samples.image_size)
        plan = samples.training_plan(settings, rank_slice, position=len(done) * size)
        batches.append(load_batches(samples, plan, options))
    with out.open("w") as file:
        file.writelines(f"{line}\n" for line in done)
        for step in range(len(done), steps):
            file.write(json.dumps([step, *(described(next(one)) for one in batches)]) + "\n")
            file.flush()


def described(batch: Batch) -> list[object]:
    digest = hashlib.sha256()
    for tensor in (batch.image, *batch.targets.values()):
        digest.update(tensor.contiguous().numpy().tobytes())
    return [list(batch.keys), digest.hexdigest()]


def lines(out: Path) -> list[str]:
    """The complete ones."""
    return out.read_text().rpartition("\n")[0].splitlines() if out.exists() else []


if __name__ == "__main__":
    read(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
