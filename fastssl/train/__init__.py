"""Losses, the step, the trainer and its files."""

from fastssl.train.checkpoint import load_networks
from fastssl.train.run import (
    calibrated_options,
    loader_options,
    resume_run,
    run_device,
    start_run,
    training_batches,
)

__all__ = [
    "calibrated_options",
    "load_networks",
    "loader_options",
    "resume_run",
    "run_device",
    "start_run",
    "training_batches",
]
