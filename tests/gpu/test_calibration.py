"""The JPEG engine is tried, and the measurement of loading runs, on the GPU that is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from damaged import overwritten
from decoding import assert_near_libjpeg, changed_at_leisure, changed_beside_steps

from fastssl.batch import PLANES
from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, RankSlice, ViewSettings, endless_plan, open_mixture
from fastssl.loader.calibration import LOADS, calibrated, fastest

ROOT = Path(__file__).parents[2]
SHARDS = ROOT / "shards" / "sample"


def test_a_fraction_is_chosen_and_an_unsafe_engine_is_not(gpu: torch.device) -> None:
    samples = open_mixture(str(SHARDS / "render_train"))
    data = DataConfig(size=131, window=(0.8, 1.0))
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=samples.image_size)
    rank_slice = RankSlice(order=samples.order(seed=0, stream=0), batch_size=64)
    found = calibrated(samples, lambda: endless_plan(settings, rank_slice), LoaderOptions(device=gpu), PLANES)
    assert found.load in LOADS
    assert set(found.seconds) == set(LOADS)
    assert found.is_safe or found.load == 0
    assert found.cpu_seconds is not None
    assert (found.load_on == "cpu") == (found.cpu_seconds <= found.seconds[fastest(found.seconds)])


def test_no_image_changes_without_the_engine(coded_synthetic: Path, gpu: torch.device) -> None:
    assert changed_at_leisure(coded_synthetic, gpu, 0.0) == 0
    assert changed_beside_steps(coded_synthetic, gpu, 0.0) == 0


@pytest.mark.parametrize("fraction", [0.65, 1.0])
def test_what_training_finds_changed_the_calibration_finds_too(
    coded_synthetic: Path, gpu: torch.device, fraction: float
) -> None:
    """So no engine is chosen that changes images while a network trains."""
    if changed_at_leisure(coded_synthetic, gpu, fraction) == 0:
        assert changed_beside_steps(coded_synthetic, gpu, fraction) == 0


@pytest.mark.parametrize("fraction", LOADS)
def test_images_are_libjpeg_s_whoever_decodes_them(gpu: torch.device, fraction: float) -> None:
    assert_near_libjpeg(gpu, fraction)


def test_a_damaged_sample_is_told_once_for_all_pipelines(
    coded_synthetic: Path, tmp_path: Path, gpu: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "damaged")
    overwritten(tmp_path / "damaged", 6, "jpg", lambda stream: b"")
    samples = open_mixture(tmp_path / "damaged")
    settings = ViewSettings(data=DataConfig(size=67), augment=AugmentConfig(), stored=samples.image_size)
    rank_slice = RankSlice(order=samples.order(seed=0, stream=0), batch_size=8)
    calibrated(samples, lambda: endless_plan(settings, rank_slice), LoaderOptions(device=gpu, threads=4, max_bad=1))
    assert sum("coded_006" in record.getMessage() for record in caplog.records) == 1


def test_loading_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastssl", "bench", "load", "--preset", "tiny", "--seconds", "5", "--json"]
    data = ["--synthetic", str(SHARDS / "render_train"), "--real", str(SHARDS / "real_train")]
    # Found there also where it is not installed.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *data], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["machine"]["gpu"]
    assert {(point["load_on"], point["hw_decoder_load"]) for point in report["sweep"]} >= {("gpu", 0.0), ("gpu", 1.0)}
    assert report["gpu"] is None or report["gpu"]["power_w"] > 0
