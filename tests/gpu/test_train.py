"""Whole trainings: mixed precision stays near full precision, and a run that is resumed ends as the undisturbed one."""

from __future__ import annotations

from pathlib import Path

from small_runs import assert_resumed_run_ends_as_undisturbed, quiet

from fastssl.methods import load_config
from fastssl.telemetry import read_metrics
from fastssl.train import start_run

SHARDS = Path(__file__).parents[2] / "shards" / "sample"
BAND = 0.15
"""Largest relative difference between the two curves of each task, averaged over 20 steps."""


def test_amp_stays_near_full_precision(tmp_path: Path) -> None:
    curves = {}
    for amp in ("false", "true"):
        overrides = [f"data.synthetic={SHARDS / 'render_train'}", f"data.real={SHARDS / 'real_train'}"]
        overrides += ["train.steps=100", "train.log_every=20", f"train.amp={amp}"]
        run = tmp_path / amp
        start_run(load_config("tiny", overrides=overrides), run, quiet)
        curves[amp] = read_metrics(run)
    for full, mixed in zip(curves["false"], curves["true"], strict=True):
        for task in ("loss/depth", "loss/normal", "loss/edge"):
            assert abs(mixed[task] - full[task]) < BAND * full[task], (full["step"], task)


def test_a_deterministic_run_ends_the_same_whether_resumed_or_not(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    assert_resumed_run_ends_as_undisturbed(coded_synthetic, coded_real, tmp_path)
