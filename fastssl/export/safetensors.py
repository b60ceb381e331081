"""Format `safetensors`: the backbone's own tensors and a header, which `fastssl.load_backbone` reads."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, ClassVar

import torch

from fastssl.export.exporter import Weights, largest_difference, random_images
from fastssl.export.header import CHECKSUM, KEY, checksum, header_of
from fastssl.export.loading import load_backbone


class SafeTensors:
    """Any backbone, in one file without code. Tensors are named as in the run's backbone."""

    name: ClassVar[str] = "safetensors"

    @staticmethod
    def check(weights: Weights) -> None:
        """All is taken; a layer that was named is noted in the header."""

    @staticmethod
    def write(weights: Weights, file: BinaryIO) -> None:
        """Tensors, and in the metadata their checksum and, at the key `fastssl`, the header as JSON."""
        from safetensors.torch import save

        state = weights.state()
        metadata = {"format": "pt", KEY: header_of(weights).model_dump_json(), CHECKSUM: checksum(state)}
        file.write(save(state, metadata))

    @staticmethod
    def verify(weights: Weights, path: Path) -> float:
        """By `fastssl.load_backbone`."""
        image = random_images(weights.config.data.size, weights.config.data.size)
        with torch.no_grad():
            return largest_difference(load_backbone(path)(image), weights.features(image))

    @staticmethod
    def usage(weights: Weights, path: Path) -> str:
        return f"fastssl.load_backbone({str(path)!r})"
