"""Checkpoints: all that the next step depends on, in files that are complete or absent."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastssl.config import Config, read_config
from fastssl.errors import CheckpointError, DataError, FastsslError
from fastssl.files import complete_or_absent
from fastssl.models import Networks, build_networks
from fastssl.shards.remote import masked

FORMAT = 2


def write_checkpoint(run: Path, step: int, config: Config, state: dict[str, Any], data: dict[str, str]) -> Path:
    """Write `checkpoints/step_XXXXXXXX.pt` under its final name only when it is complete.

    Args:
        run: the run folder.
        step: steps made so far.
        config: of the run.
        state: `TrainingStep.state_dict()`.
        data: fingerprint of each domain's datasets. With `step` it is all that the order of the samples and their views
            depend on.
    """
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    content = {"format": FORMAT, "step": step, "config": config.model_dump(mode="json"), "data": data}
    content["state"] = state
    with complete_or_absent(path) as file:
        torch.save(content, file)
    return path


def latest_checkpoint(run: Path) -> Path:
    """The checkpoint with the most steps.

    Raises:
        DataError: the folder is no run, or has no checkpoint.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(
            "the folder holds no run", where=run, expected="a config.yaml", do="give the --out of a training"
        )
    paths = sorted((run / "checkpoints").glob("step_*.pt"))
    if not paths:
        raise DataError("the run has no checkpoint", where=run / "checkpoints", do="train it first")
    return paths[-1]


def read_checkpoint(path: Path, config: Config) -> dict[str, Any]:
    """Read `{"step": int, "state": ...}`, tensors on the CPU.

    Raises:
        DataError: the file is damaged.
        CheckpointError: it belongs to another architecture than `config`, or to another version of the format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise DataError(
            "the checkpoint cannot be read", where=path, seen=error, do="remove it to use an older one"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError("the file is not a checkpoint of this version", where=path, expected=f"format {FORMAT}")
    stored, wanted = content["config"]["model"], config.model_dump(mode="json")["model"]
    different = [name for name in wanted if stored.get(name) != wanted[name]]
    if different:
        raise CheckpointError(
            "the checkpoint is of another architecture",
            where=path,
            seen=", ".join(f"model.{name} = {stored.get(name)}" for name in different),
            expected=", ".join(f"{wanted[name]}" for name in different),
            do="use the settings that the run was trained with",
        )
    return content


def load_networks(run: Path) -> tuple[Networks, Config]:
    """The trained networks of a run, in evaluation mode on the CPU, and its settings."""
    networks, config, _ = load_trained(run)
    return networks, config


def load_trained(run: Path) -> tuple[Networks, Config, dict[str, str]]:
    """As `load_networks`, with the fingerprint of each domain's datasets that the run was trained on."""
    path = latest_checkpoint(run)
    config = read_config(run / "config.yaml")
    content = read_checkpoint(path, config)
    networks = build_networks(config.model, config.train.seed)
    for name, part in networks.parts().items():
        part.load_state_dict(content["state"][name])
        part.eval()
    return networks, config, content["data"]


def check_data(
    before: Mapping[str, str], now: Mapping[str, str], config: Config, error: type[FastsslError] = CheckpointError
) -> None:
    """Compare the fingerprints of a run's datasets with those that it was trained on.

    Raises:
        CheckpointError: they are others; or the error that is asked for.
    """
    for domain, fingerprint in now.items():
        if before[domain] != fingerprint:
            raise error(
                f"the {domain} data are not those that the run was trained on",
                where=", ".join(map(masked, getattr(config.data, domain))),
                do="put back the dataset as it was, or begin a new run",
            )
