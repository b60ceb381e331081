"""Methods, each in a file of its own. To add one, write the file and add its class to the tuple below."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fastssl.config import RUN_CURE, Config, Preset, check_complete, compose, read_yaml, validated
from fastssl.errors import ConfigError, DataError
from fastssl.methods.bigan import Bigan
from fastssl.methods.colorization import Colorization
from fastssl.methods.context import Context
from fastssl.methods.context_encoder import ContextEncoder
from fastssl.methods.counting import Counting
from fastssl.methods.cross_domain import CrossDomain
from fastssl.methods.jigsaw import Jigsaw
from fastssl.methods.method import Constrained, Dense, ManyLosses, Method, StepContext
from fastssl.methods.rotation import Rotation
from fastssl.methods.split_brain import SplitBrain
from fastssl.methods.supervised import Supervised

__all__ = [
    "METHODS",
    "Constrained",
    "Dense",
    "ManyLosses",
    "Method",
    "StepContext",
    "find_method",
    "load_config",
    "measured_method",
    "read_config",
    "unit_of",
]

_METHODS: tuple[type[Method], ...] = (
    CrossDomain,
    Rotation,
    Jigsaw,
    Context,
    Colorization,
    Supervised,
    SplitBrain,
    Counting,
    ContextEncoder,
    Bigan,
)
METHODS = {method.name: method for method in _METHODS}
"""By name; the first is the one that is taken where none is named."""


def find_method(name: object) -> type[Method]:
    """The method of a name.

    Raises:
        ConfigError: there is none; the nearest name is offered.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    nearest = difflib.get_close_matches(str(name), METHODS, n=1)
    names = ", ".join(METHODS)
    expected = f"{nearest[0]!r}? All names: {names}" if nearest else f"one of: {names}"
    raise ConfigError("there is no such method", seen=repr(name), expected=expected)


def unit_of(config: Config) -> str:
    """What a step with these settings goes through, in the plural: a pair needs two domains."""
    method = find_method(config.method)
    return method.unit if len(method.domains(config)) > 1 else "images"


def measured_method(config: Any) -> Method:
    """The method of a run, fresh and on the CPU, to be measured and not trained.

    So nothing is compiled, and an optimizer that only a GPU has is not asked for.

    Args:
        config: the method's own kind of settings.
    """
    train = config.train.model_copy(update={"compile": False})
    optim = config.optim.model_copy(update={"backend": "fused"})
    plainly = config.model_copy(update={"train": train, "optim": optim})
    return find_method(config.method)(plainly, StepContext(plainly, torch.device("cpu")))


def load_config(
    preset: str | None = None,
    *,
    method: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
    settings: Preset | None = None,
) -> Any:
    """The settings of a run, from their layers as `fastssl.config.compose` has them.

    Args:
        preset: name of one of the method's presets; None = the one that the file names, or else `paper`.
        method: its name; None = the one that the file names, or else `cross_domain`.
        file: of YAML, as `fastssl.core_yaml` reads it.
        overrides: each ``section.key=value``.
        settings: by section and name.

    Returns:
        The method's own kind of settings.

    Raises:
        ConfigError: as `compose`; no such method, settings that cannot work together, or a file that is not YAML.
    """
    layers = {} if file is None else read_yaml(file)
    named = layers.pop("method", method or CrossDomain.name)
    if method is not None and named != method:
        raise ConfigError(
            "the file of settings names another method", where=file, seen=repr(named), expected=repr(method)
        )
    layer = layers.pop("preset", preset or "paper")
    if preset is not None and layer != preset:
        raise ConfigError(
            "the file of settings names another preset", where=file, seen=repr(layer), expected=repr(preset)
        )
    found = find_method(named)
    config = compose(
        found.Config,
        found.presets,
        layer,
        file=layers,
        file_name=str(file),
        overrides=overrides,
        settings=settings,
    )
    found.check(config)
    return config


_METHOD_CURE = "write the name as the run had it, or use a version of fastssl that has this method"


def read_config(path: Path) -> Config:
    """Read the resolved configuration of a run folder, which holds every setting.

    Raises:
        DataError: the file is damaged, lacks settings, or holds some that this version does not know. A default in the
            place of what was torn away would be another run.
    """
    method_is_unknown = False
    try:
        values = read_yaml(path)
        method_is_unknown = "method" in values and str(values["method"]) not in METHODS
        config = validated(find_method(values.get("method")).Config, values, where=path)
    except ConfigError as error:
        raise DataError(
            f"the run's settings cannot be used: {error.what}",
            where=error.where or path,
            seen=error.seen,
            expected=error.expected,
            hint=error.hint or (_METHOD_CURE if method_is_unknown else RUN_CURE),
        ) from error
    check_complete(values, config, path)
    return config
