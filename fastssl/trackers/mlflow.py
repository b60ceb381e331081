"""MLflow."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

_MOST_PARAMS = 100
"""That one call takes."""
_MOST_CHARACTERS = 500
"""Of a value, for servers of any age."""


class MLflow:
    """A run of MLflow, in the experiment of MLFLOW_EXPERIMENT_NAME, or else `fastssl`."""

    name: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow"

    def __init__(self, run: Path, settings: Mapping[str, object], first_step: int, known: str | None) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        self._shown = 0
        if known is not None:
            self._id = self._mlflow.start_run(run_id=known).info.run_id
            # A step that is told again would be a second point.
            history = self._mlflow.MlflowClient().get_metric_history(known, "lr")
            self._shown = max((point.step for point in history), default=0)
            return
        self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "fastssl"))
        self._id = self._mlflow.start_run(run_name=run.absolute().name).info.run_id
        params = {name: str(value)[:_MOST_CHARACTERS] for name, value in settings.items()}
        names = list(params)
        for first in range(0, len(names), _MOST_PARAMS):
            self._mlflow.log_params({name: params[name] for name in names[first : first + _MOST_PARAMS]})

    @property
    def identity(self) -> str:
        return str(self._id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._shown:
            self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()
