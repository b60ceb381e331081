"""Packages that only some commands need, and how one gets them."""

from __future__ import annotations

import importlib
from typing import Any

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


def optional_package(name: str, *, where: str, hint: str) -> Any:
    """A package that only this needs.

    Args:
        name: of the module.
        where: the option or setting that asks for it.
        hint: how one gets it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError("a package is not installed", where=where, seen=str(error), hint=hint) from error
