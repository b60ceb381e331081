"""Losses, the step, the trainer and its files."""

from fastssl.train.checkpoint import check_data, load_networks, load_trained
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
    "check_data",
    "load_networks",
    "load_trained",
    "loader_options",
    "resume_run",
    "run_device",
    "start_run",
    "training_batches",
]
