"""Packages that only some commands need, and how one gets them."""

from __future__ import annotations

from fastssl.errors import UsageError

_TRAIN = ("torch", "nvidia", "tensorboard", "pynvml", "jinja2", "safetensors")


def extra_needed(error: ImportError) -> UsageError | None:
    """The error that names the extra whose packages are not installed; None where it is something else."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in _TRAIN:
        return None
    return UsageError(
        "loading and training need packages that are not installed",
        seen=str(error),
        hint="pip install 'fastssl[train]'",
    )
