"""Losses, the step, the trainer and its files."""

from fastssl.train.checkpoint import load_networks
from fastssl.train.run import loader_options, resume_run, run_device, start_run, training_batches

__all__ = ["load_networks", "loader_options", "resume_run", "run_device", "start_run", "training_batches"]
