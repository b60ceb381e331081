"""Mixed precision on the sample shards against full precision: the loss curves stay within a band."""

from __future__ import annotations

from pathlib import Path

from fastssl.config import load_config
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
        start_run(load_config("tiny", overrides=overrides), run, lambda done, total=None, words="": None)
        curves[amp] = read_metrics(run)
    for full, mixed in zip(curves["false"], curves["true"], strict=True):
        for task in ("loss/depth", "loss/normal", "loss/edge"):
            assert abs(mixed[task] - full[task]) < BAND * full[task], (full["step"], task)
