"""Weights & Biases."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class WandB:
    """A run of Weights & Biases, in the project of WANDB_PROJECT, or else `fastssl`."""

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    def __init__(self, run: Path, settings: Mapping[str, object], first_step: int, known: str | None) -> None:
        self._id = known or secrets.token_hex(8)
        # Steps that were shown before a kill are shown once: of a step that lies behind, wandb takes nothing.
        self._run: Any = importlib.import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "fastssl"),
            name=run.absolute().name,
            dir=str(run),
            config=dict(settings),
            id=self._id,
            resume="allow",
            allow_val_change=True,
        )

    @property
    def identity(self) -> str:
        return self._id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
