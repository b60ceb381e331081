"""Weights out of a run, in the forms that others read, each in a file of its own.

To add one, write the file and add its class to the tuple below. Neither this nor `load_backbone` of an exported file
loads DALI; `fastssl.export.run` does, which reads runs.
"""

from __future__ import annotations

import difflib

from fastssl.errors import UsageError
from fastssl.export.exporter import Exporter, Weights
from fastssl.export.header import Header
from fastssl.export.loading import load_backbone, read_header
from fastssl.export.onnx import Onnx
from fastssl.export.safetensors import SafeTensors
from fastssl.export.timm import Timm
from fastssl.export.torchvision import TorchVision

__all__ = ["EXPORTERS", "Exporter", "Header", "Weights", "find_exporter", "load_backbone", "read_header"]

_EXPORTERS: tuple[type[Exporter], ...] = (SafeTensors, TorchVision, Timm, Onnx)
EXPORTERS = {exporter.name: exporter for exporter in _EXPORTERS}
"""All by their names."""


def find_exporter(name: str) -> type[Exporter]:
    """The exporter of a format.

    Raises:
        UsageError: there is none; the nearest name is offered.
    """
    if name in EXPORTERS:
        return EXPORTERS[name]
    nearest = difflib.get_close_matches(name, EXPORTERS, n=1)
    names = ", ".join(EXPORTERS)
    expected = f"{nearest[0]!r}? All names: {names}" if nearest else f"one of: {names}"
    raise UsageError("there is no such format", where="--format", seen=name, expected=expected)
