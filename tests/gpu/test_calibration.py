"""The JPEG engine is tried, and the measurement of loading runs, on the GPU that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from late_reading import begin

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, Share, ViewSettings, open_mixture, training_plan
from fastssl.loader.calibration import LOADS, calibrated, changed_images

ROOT = Path(__file__).parents[2]
SHARDS = ROOT / "shards" / "sample"


def test_a_share_is_chosen_and_an_unsafe_engine_is_not(gpu: torch.device) -> None:
    samples = open_mixture(str(SHARDS / "render_train"))
    data = DataConfig(size=131, window=(0.8, 1.0))
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=samples.image_size)
    share = Share(order=samples.order(seed=0, stream=0), batch_size=64)
    found = calibrated(samples, lambda: training_plan(settings, share), LoaderOptions(device=gpu))
    assert found.load in LOADS
    assert set(found.seconds) == (set(LOADS) if found.is_safe else set())
    assert found.is_safe or found.load == 0


def test_no_image_changes_without_the_engine(coded_synthetic: Path, gpu: torch.device) -> None:
    options = LoaderOptions(device=gpu, threads=4, hw_decoder_load=0.0)
    batches = partial(begin, coded_synthetic, options, labels=False)
    assert changed_images(lambda: (batch.image for batch in batches()), gpu) == 0


def test_loading_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastssl", "bench", "load", "--preset", "tiny", "--seconds", "5", "--json"]
    data = ["--synthetic", str(SHARDS / "render_train"), "--real", str(SHARDS / "real_train")]
    # Found there also where it is not installed.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *data], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["machine"]["gpu"]
    assert {point["hw_decoder_load"] for point in report["sweep"]} >= {0.0, 1.0}
    assert report["gpu"] is None or report["gpu"]["power_w"] > 0
