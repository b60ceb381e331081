"""A room traced by the GPU against the CPU's labels of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def test_the_gpu_gives_the_same_labels(gpu: torch.device, tmp_path: Path) -> None:
    mitsuba = pytest.importorskip("mitsuba", reason="mitsuba is not installed")
    # Not above: they cannot be imported without it.
    from rendered import assert_same_labels, labels_by

    from fastssl.render.tracer import _has_ray_tracing_gpu

    if "cuda_ad_rgb" not in mitsuba.variants():
        pytest.skip("this Mitsuba has no variant cuda_ad_rgb")
    if not _has_ray_tracing_gpu():
        pytest.skip("this machine has no OptiX (libnvoptix.so.1)")
    assert_same_labels(labels_by("cuda_ad_rgb", tmp_path), labels_by("scalar_rgb", tmp_path))
