"""Backbones back from what was written: an exported file or a run."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from fastssl.backbones import Backbone, build_backbone
from fastssl.errors import DataError
from fastssl.export.header import CHECKSUM, KEY, Header, checksum
from fastssl.faults import is_gone, machine_faults_named
from fastssl.files import open_regular

_HINT = "give a file of `fastssl export --format safetensors`, or a run folder"


def load_backbone(path: str | PathLike[str]) -> Backbone:
    """A trained backbone, on the CPU and in evaluation mode.

    ``backbone(images, until="conv5")`` gives the maps up to a layer by their names; `backbone.feature_info` lists all
    layers with channels and strides. Layers that the run froze are frozen. An exported file is read without DALI.

    It wants images (N, 3, H, W), RGB floats in 0..1 from which `fastssl.batch.IMAGE_MEAN` (0.485, 0.456, 0.406) was
    subtracted, and that were **not** divided by a deviation as ImageNet's images often are; of a size that
    `backbone.check_size` takes.

    Args:
        path: a file that `fastssl export --format safetensors` wrote; or a run folder, for its newest checkpoint; or a
            checkpoint of a run, such as ``RUN/checkpoints/best.pt``.

    Raises:
        DataError: there is no such file, it is cut short, damaged, or of another origin; or no run, or one without a
            checkpoint.
        UsageError: the backbone is of timm, which is not installed.
        MachineError: the system cannot read it.
    """
    path = Path(path)
    if path.is_dir() or _is_of_torch(path):
        from fastssl.train import load_trained  # DALI comes with it

        return load_trained(path).method.backbone
    header, tensors = _read(path)
    with torch.random.fork_rng(devices=[]):  # torch's modules draw a default initialisation, which is overwritten
        backbone = build_backbone(header.model, post_relu=header.post_relu)
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(
            f"the file's tensors are not those of its backbone {header.model.backbone}",
            where=path,
            seen=" ".join(str(error).split()),
            expected=f"what fastssl {header.version} wrote",
            hint="export the run again",
        ) from error
    return backbone.eval()


def read_header(path: str | PathLike[str]) -> Header:
    """What an exported file of safetensors says of itself; raises as `load_backbone`."""
    return _read(Path(path), with_tensors=False)[0]


def _is_of_torch(path: Path) -> bool:
    """A file that `torch.save` wrote, as it begins; safetensors begin with a length that is never so large."""
    with machine_faults_named(path):
        if not path.is_file():
            return False
        with open_regular(path) as file:
            return file.read(4) == b"PK\3\4"


def _read(path: Path, *, with_tensors: bool = True) -> tuple[Header, dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    with machine_faults_named(path):
        try:
            open_regular(path).close()
            with safe_open(path, framework="pt", device="cpu") as file:
                header = _header(file.metadata(), path)
                names: Any = file.keys() if with_tensors else ()
                tensors = {name: file.get_tensor(name) for name in names}
                if with_tensors:
                    _check_tensors(tensors, file.metadata(), path)
                return header, tensors
        except OSError as error:
            if not is_gone(error):
                raise
            raise DataError("there is no such file", where=path, seen=error.strerror, hint=_HINT) from error
        except SafetensorError as error:
            what = "the file is cut short, damaged, or no safetensors"
            raise DataError(what, where=path, seen=error, hint=_HINT) from error


def _check_tensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> None:
    expected = metadata.get(CHECKSUM)
    if expected is not None and (seen := checksum(tensors)) != expected:
        what = "the file's tensors are not as they were written"
        hint = "copy the file again, or export the run again"
        raise DataError(what, where=path, seen=f"CRC-32 {seen}", expected=expected, hint=hint)


def _header(metadata: dict[str, str] | None, path: Path) -> Header:
    if not metadata or KEY not in metadata:
        raise DataError(
            "fastssl did not write this file", where=path, expected=f"metadata with the key {KEY}", hint=_HINT
        )
    try:
        return Header.model_validate_json(metadata[KEY])
    except ValidationError as error:
        raise DataError(
            "what the file says of itself cannot be read",
            where=path,
            seen=f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}",
            hint="use the version of fastssl that wrote it",
        ) from error
