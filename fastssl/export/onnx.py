"""Format `onnx`: a graph that needs no Python (extra `onnx`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.export.exporter import Weights, largest_difference, random_images
from fastssl.export.header import KEY, header_of
from fastssl.extras import optional_package

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Onnx:
    """Any backbone, from `image` to the maps of all layers by their names, or to that of one alone.

    The number of images is free, and their size is the run's. The header stands in the metadata, as in safetensors.
    """

    name: ClassVar[str] = "onnx"

    @staticmethod
    def check(weights: Weights) -> None:
        """All is taken, where the packages are installed."""
        for package in _PACKAGES:
            optional_package(package, where="--format onnx", hint="pip install 'fastssl[onnx]'")

    @staticmethod
    def write(weights: Weights, file: BinaryIO) -> None:
        """By torch's exporter, all in one file."""
        layers = _layers(weights)
        program = torch.onnx.export(
            _Maps(weights.backbone, layers).eval(),
            (_images(weights, 2),),
            input_names=["image"],
            output_names=layers,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props[KEY] = header_of(weights).model_dump_json()
        file.write(program.model_proto.SerializeToString())

    @staticmethod
    def verify(weights: Weights, path: Path) -> float:
        """In onnxruntime on the CPU, with another number of images than the graph was made with, and with one."""
        runtime: Any = importlib.import_module("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        layers = _layers(weights)
        differences = []
        for number in (1, 3):
            image = _images(weights, number)
            maps = session.run(layers, {"image": image.numpy()})
            found = {name: torch.from_numpy(map_) for name, map_ in zip(layers, maps, strict=True)}
            expected = weights.features(image)
            differences.append(largest_difference(found, {name: expected[name] for name in layers}))
        return max(differences)

    @staticmethod
    def usage(weights: Weights, path: Path) -> str:
        return f"onnxruntime.InferenceSession({str(path)!r})"


class _Maps(nn.Module):
    """The maps of some layers, in an order of their own."""

    def __init__(self, backbone: Backbone, layers: list[str]) -> None:
        super().__init__()
        self._backbone, self._layers = backbone, layers

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self._backbone(image, until=self._layers[-1])
        return tuple(maps[layer] for layer in self._layers)


def _layers(weights: Weights) -> list[str]:
    """The layers whose maps are written, in the order of computation."""
    return list(weights.backbone.feature_info) if weights.layer is None else [weights.layer]


def _images(weights: Weights, number: int) -> Tensor:
    return random_images(weights.config.data.size, weights.config.data.size, number)
