"""Backbones with weights that others have trained: state dicts of torch, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastssl.backbones import BACKBONES, Backbone, build_backbone
from fastssl.config import BackboneSettings, dataset_path, read_yaml, shown
from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.faults import machine_fault, machine_faults_named
from fastssl.files import open_regular

AUTHORS = "authors:"
_MAP = ",map="
_PREFIX = "module."
"""What torch's DataParallel puts in front of all names."""
_COUNT = "num_batches_tracked"
"""Of a batch norm; features do not depend on it, and files from before torch 0.4.1 may lack it."""
_PARTS = ("weight", "bias", "running_mean", "running_var", _COUNT)
_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
_AUTHORS_NAMES = {
    f"{theirs}.{part}": f"layers.{layer}.{ours}.{part}"
    for number, layer in enumerate(_LAYERS, start=1)
    for theirs, ours, parts in ((layer, "conv", _PARTS[:2]), (f"bn{number}", "norm", _PARTS))
    for part in parts
}


def imported_backbone(text: str) -> tuple[Backbone, BackboneSettings] | None:
    """The backbone of `authors:FILE` or `NAME:FILE[,map=FILE]`, on the CPU and in evaluation mode, and its settings.

    `authors:` is a `netB` of the authors' release (docs/reproduction.md, section 3.3), which is `alexnet` here. With
    any other NAME of `fastssl.backbones.BACKBONES`, a map in YAML or JSON gives each name in the file of weights ours,
    or null where a tensor is left out; without it names are ours. Networks have the published size. In front of all
    names in the file there may be `module.`.

    They see images as ours do: RGB in 0..1 less the mean, not divided by a deviation.

    Returns:
        None where it is neither.

    Raises:
        DataError: the file is no state dict; or a name is missing, not known, or of a tensor of another shape.
        ConfigError: the map cannot be read, or is none.
        UsageError: a file is not named.
    """
    name, colon, rest = text.partition(":")
    if not colon or not (text.startswith(AUTHORS) or name in BACKBONES):
        return None
    file, with_map, map_file = rest.partition(_MAP)
    if not file or (with_map and not map_file):
        expected = f"{name}:FILE" if text.startswith(AUTHORS) else f"{name}:FILE or {name}:FILE{_MAP}FILE"
        raise UsageError("a file is not named", seen=text, expected=expected)
    settings = BackboneSettings(backbone="alexnet" if text.startswith(AUTHORS) else name)
    with torch.device("meta"):  # without the default initialisation of so many weights
        backbone = build_backbone(settings).eval()
    names: dict[str, str | None] = {own: own for own in backbone.state_dict()}
    if text.startswith(AUTHORS):
        names = {**_AUTHORS_NAMES}
    elif with_map:
        names = _read_map(Path(map_file))
    state = renamed(read_state(Path(file)), names, backbone.state_dict(), Path(file))
    backbone.to_empty(device="cpu").load_state_dict(state)
    return backbone, settings


def absolute_import(text: str) -> str | None:
    """The same words with absolute paths; None where they are no such words."""
    name, colon, files = text.partition(":")
    if not colon or not (text.startswith(AUTHORS) or name in BACKBONES):
        return None
    return f"{name}:{_MAP.join(map(dataset_path, files.split(_MAP)))}"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch saved.

    Raises:
        DataError: it cannot be read, or holds something else than a state dict.
    """
    expected = "a state dict: tensors by their names"
    with machine_faults_named(path):
        try:
            with open_regular(path) as file:
                state = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises whatever its unpickler met
            if machine_fault(error) is not None:
                raise
            # Torch's words advise to load it so that it may run any code, or are those of its unpickler.
            raise DataError(
                "the weights cannot be loaded",
                where=path,
                seen=error.strerror if isinstance(error, OSError) else "no file of tensors alone",
                expected=expected,
                hint="save it by torch.save(model.state_dict(), FILE)",
            ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        seen = type(state).__name__
        if isinstance(state, Mapping):
            seen = f"{seen} with {', '.join(map(str, list(state)[:4]))}"
        hint = "save the one that is in it by torch.save(torch.load(FILE)[NAME], OTHER)"
        raise DataError("the file holds no state dict", where=path, seen=seen, expected=expected, hint=hint)
    if spoiled := [str(name) for name, value in state.items() if not value.isfinite().all()]:
        raise DataError("weights are not finite", where=path, seen=_first(spoiled), expected="numbers")
    return {str(name): value for name, value in state.items()}


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str | None], own: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Tensors by our names.

    Args:
        state: tensors by the names of the file.
        names: ours by those of the file; None leaves a tensor out.
        own: the tensors of the backbone by their names, of which the shapes count.
        path: of the file, for messages.

    Raises:
        DataError: a tensor is missing, is not known, or has another shape.
    """
    if state and all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    if unknown := [name for name in state if name not in names]:
        expected = f"names such as {next(iter(names), 'those of the map')}"
        raise DataError("the file has weights that are not known", where=path, seen=_first(unknown), expected=expected)
    found = {ours: state[theirs] for theirs, ours in names.items() if ours is not None and theirs in state}
    theirs_of = {ours: theirs for theirs, ours in names.items()}
    missing = [theirs_of.get(name, name) for name in own if name not in found and not name.endswith(_COUNT)]
    if missing:
        raise DataError("weights are missing", where=path, seen=f"no {_first(missing)}", expected="all of the backbone")
    if strange := [name for name in found if name not in own]:
        what, expected = "the map names what the backbone does not have", f"names such as {next(iter(own))}"
        raise DataError(what, where=path, seen=_first(strange), expected=expected)
    for name, value in found.items():
        if value.shape != own[name].shape:
            seen, expected = (str(tuple(x.shape)) for x in (value, own[name]))
            where = f"{path}: {theirs_of[name]}"
            raise DataError("a tensor has another shape than the backbone's", where=where, seen=seen, expected=expected)
    return {name: found[name] if name in found else torch.tensor(0) for name in own}


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _read_map(path: Path) -> dict[str, str | None]:
    names: dict[str, str | None] = read_yaml(path, "map of names", "names in the file of weights, each with ours")
    for theirs, ours in names.items():
        if ours is not None and not isinstance(ours, str):
            raise ConfigError(
                "a map of names has a value that is no name",
                where=f"{path}: {theirs}",
                seen=shown(ours),
                expected="our name of this tensor, or null to leave it out",
            )
    given = [ours for ours in names.values() if ours is not None]
    if twice := {ours for ours in given if given.count(ours) > 1}:
        raise ConfigError("a map of names gives one name twice", where=path, seen=min(twice))
    return names
