"""The trainer, its runs and their files; methods come from `fastssl.methods`."""

from fastssl.train.beginning import initialise_by_first_images
from fastssl.train.checkpoint import Trained, check_data, load_trained
from fastssl.train.run import (
    calibrated_options,
    complete_run,
    configure_torch,
    dry_run,
    is_finished,
    loader_options,
    resume_run,
    run_device,
    start_run,
)
from fastssl.train.stop import Stopped

__all__ = [
    "Stopped",
    "Trained",
    "calibrated_options",
    "check_data",
    "complete_run",
    "configure_torch",
    "dry_run",
    "initialise_by_first_images",
    "is_finished",
    "load_trained",
    "loader_options",
    "resume_run",
    "run_device",
    "start_run",
]
