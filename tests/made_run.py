"""Run folders as training leaves them, and what they hold read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastssl.config import write_config
from fastssl.loader import open_mixture
from fastssl.methods import StepContext, find_method, load_config
from fastssl.train.checkpoint import Moment, write_checkpoint

SMALL = ["train.seed=7", "data.size=67", "model.width=0.1", "model.fc_channels=16", "model.head_channels=4"]


def make_run(
    folder: Path, synthetic: Path | str | None, real: Path | str | None, *overrides: str, method: str = "cross_domain"
) -> Path:
    """A run as training leaves it, of networks as they are drawn."""
    data = [f"data.{name}={path}" for name, path in (("synthetic", synthetic), ("real", real)) if path]
    small = SMALL if method == "cross_domain" else SMALL[:-1]
    config = load_config("tiny", method=method, overrides=[*small, *data, *overrides])
    folder.mkdir()
    write_config(config, folder / "config.yaml")
    context = StepContext(config, torch.device("cpu"))
    method_of_run = find_method(config.method)(config, context)
    state = {**method_of_run.state_dict(), "context": context.state_dict()}
    read = {request.name for request in find_method(method).domains(config)}
    fingerprints = {
        name: open_mixture(config.data.datasets(name)).fingerprint if name in read else ""
        for name in ("synthetic", "real")
    }
    moment = Moment(step=3, positions=dict.fromkeys(read, 48), state=state, ranks=[method_of_run.rank_state_dict()])
    write_checkpoint(folder, moment, config, fingerprints)
    return folder


def diverged(run: Path) -> Path:
    """The run, with a backbone that has become NaN."""
    (checkpoint,) = (run / "checkpoints").glob("*.pt")
    content = torch.load(checkpoint, weights_only=True)
    for value in content["state"]["backbone"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(content, checkpoint)
    return run


def strict(text: str) -> Any:
    """JSON as its standard has it, without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)
