"""The loader against itself: killed and continued, over many epochs."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import loader_process
import processes
import pytest
import torch

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, load_batches, open_mixture


@pytest.mark.parametrize(("kills", "steps"), [(1, 25), pytest.param(20, 400, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_a_loader_killed_at_random_steps_goes_on_with_the_very_same_batches(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, kills: int, steps: int
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    arguments = [sys.executable, loader_process.__file__, coded_synthetic, coded_real]
    loader_process.read(coded_synthetic, coded_real, undisturbed, steps)
    rng = random.Random(0)
    at = []
    for kill in range(kills):
        process = processes.start([*arguments, out, steps])
        begun = len(loader_process.lines(out))
        wanted = begun + rng.randrange(1, max(2, (steps - begun) // (2 * (kills - kill))))
        while len(loader_process.lines(out)) < wanted:
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        at.append(len(loader_process.lines(out)))
    assert at[-1] < steps
    assert at == sorted(set(at))
    loader_process.read(coded_synthetic, coded_real, out, steps)
    assert out.read_text() == undisturbed.read_text()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_fifty_epochs(record_property: Callable[[str, object], None]) -> None:
    """Less than 2 % from the tenth epoch to the fiftieth."""
    shards = open_mixture(Path(__file__).parents[2] / "shards" / "sample" / "render_train")
    rank_slice = RankSlice(order=shards.order(seed=0, stream=0), batch_size=16)
    settings = ViewSettings(
        data=DataConfig(size=131, window=(0.7, 1.0)), augment=AugmentConfig(), stored=shards.image_size
    )
    options = LoaderOptions(device=torch.device("cpu"), threads=2)
    batches = load_batches(shards, shards.training_plan(settings, rank_slice), options)
    resident = []
    for _ in range(50):
        for _ in islice(batches, len(shards) // 16):
            pass
        resident.append(resident_bytes())
    growth = resident[-1] / resident[9] - 1
    record_property("resident_bytes", resident)
    assert growth < 0.02, [f"{size / 2**20:.1f} MiB" for size in resident]
