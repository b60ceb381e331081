"""What NVML tells is of the GPU that torch uses, and of its JPEG engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from decoding import photos

from fastssl.bench.gpu import GpuUse, gpu_use
from fastssl.telemetry import gpu_readings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.alone
GROWTH = """
import json, torch
from fastssl.telemetry import gpu_readings
torch.zeros(1, device="cuda")
before = gpu_readings(0)
held = torch.empty(2**31, dtype=torch.uint8, device="cuda")
print(json.dumps([before, gpu_readings(0)]))
"""
ENGINES = {(8, 0), (9, 0), (10, 0)}
"""Compute capabilities of GPUs with a JPEG engine: A100, H100 and H200, B200."""


@pytest.mark.parametrize("named", ["by number", "by UUID"])
def test_memory_that_is_taken_is_seen_on_the_gpu_that_is_visible(gpu: torch.device, named: str) -> None:
    """In a process of its own, which sees the last GPU alone."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    last = torch.cuda.device_count() - 1
    if named == "by UUID":
        env["CUDA_VISIBLE_DEVICES"] = f"GPU-{torch.cuda.get_device_properties(last).uuid}"
    else:
        seen = [word for word in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
        env["CUDA_VISIBLE_DEVICES"] = seen[-1] if seen else str(last)
    done = subprocess.run([sys.executable, "-c", GROWTH], env=env, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert 1.9 < after["gpu/memory_gib"] - before["gpu/memory_gib"] < 2.2


def used(gpu: torch.device, fraction: float) -> GpuUse:
    """While images of the sample shards are decoded for some seconds."""
    images = photos(gpu, fraction)
    found = gpu_use(lambda: len(next(images)), 3.0, gpu.index, wait=torch.cuda.current_stream(gpu).synchronize)
    if found is None or found.jpeg_engine_percent is None:
        pytest.skip(f"the driver tells {', '.join(gpu_readings(gpu.index)) or 'nothing'}, and not the engine's use")
    return found


def test_the_engine_is_busy_where_it_decodes_all_and_idle_where_none(gpu: torch.device) -> None:
    if torch.cuda.get_device_capability(gpu) not in ENGINES:
        pytest.skip(f"{torch.cuda.get_device_name(gpu)} has no JPEG engine")
    without, alone = used(gpu, 0.0).jpeg_engine_percent, used(gpu, 1.0).jpeg_engine_percent
    assert without is not None
    assert alone is not None
    assert without < alone
    assert alone > 0
