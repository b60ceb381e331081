"""What an exporter is, what it writes, and how what it wrote is compared with the run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import torch
from torch import Tensor

from fastssl.backbones import Backbone
from fastssl.batch import IMAGE_MEAN
from fastssl.config import Config
from fastssl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is exported: a backbone, and where it comes from."""

    backbone: Backbone
    """In evaluation mode, on the CPU."""
    config: Config
    """The settings of its run."""
    step: int
    """Steps that it was trained for."""
    compared_layer: str
    """The layer that its method's evaluations look at."""
    layer: str | None = None
    """The layer whose map is wanted, where one was named."""

    def state(self) -> dict[str, Tensor]:
        """The backbone's weights and statistics by their names in it, each with memory of its own."""
        return {name: plain_copy(value) for name, value in self.backbone.state_dict().items()}

    @torch.no_grad()
    def features(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of all layers, in the order of computation."""
        maps: dict[str, Tensor] = self.backbone(image)
        return maps

    def features_after_relu(self, image: Tensor) -> dict[str, Tensor]:
        """The same maps after their ReLU, which is where other libraries take them."""
        return {name: map_.relu() for name, map_ in self.features(image).items()}


class Exporter(Protocol):
    """A format that weights are written in, one per file."""

    name: ClassVar[str]
    """As `--format` has it."""

    @staticmethod
    def check(weights: Weights) -> None:
        """Refuse what cannot be written, before anything is.

        Raises:
            UsageError: the format has no place for this backbone or for a layer, or a package is not installed.
        """

    @staticmethod
    def write(weights: Weights, file: BinaryIO) -> None:
        """Write all of the file."""

    @staticmethod
    def verify(weights: Weights, path: Path) -> float:
        """Load the file as its users do, and return the `largest_difference` of the features of random images.

        Raises:
            Exception: what the library raises that cannot load the file.
        """

    @staticmethod
    def usage(weights: Weights, path: Path) -> str:
        """A line of Python that loads the file."""


def plain_copy(value: Tensor) -> Tensor:
    """A tensor as other libraries want to find it: contiguous, and of a memory that it shares with no other."""
    return value.detach().clone(memory_format=torch.contiguous_format)


def random_images(height: int, width: int, number: int = 2) -> Tensor:
    """Images as a run sees them, (N, 3, H, W) float32: RGB in 0..1 without `IMAGE_MEAN`; the same at each call."""
    image = torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(0))
    return image - torch.from_numpy(IMAGE_MEAN).view(3, 1, 1)


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of any two values, as a fraction of the largest absolute value of the expected map.

    Maps of other names or shapes differ infinitely, and so does what is not finite.
    """
    if {name: map_.shape for name, map_ in found.items()} != {name: map_.shape for name, map_ in expected.items()}:
        return float("inf")
    differences = [
        float((found[name] - map_).abs().max() / map_.abs().max().clamp(min=torch.finfo(map_.dtype).tiny))
        for name, map_ in expected.items()
    ]
    # Python's max would pass over a NaN.
    return float(torch.tensor(differences).nan_to_num(nan=float("inf")).max())


def write_state(state: Mapping[str, Any], file: BinaryIO) -> None:
    """Write tensors as `torch.load(..., weights_only=True)` reads them."""
    content = io.BytesIO()  # torch's own words for a full disk do not tell of the system's error
    torch.save(dict(state), content)
    file.write(content.getbuffer())


def refuse_layer(weights: Weights, exporter: str) -> None:
    """Refuse a layer where the whole network is written.

    Raises:
        UsageError: one was named.
    """
    if weights.layer is not None:
        raise UsageError(
            f"{exporter} takes the whole network",
            where="--layer",
            seen=weights.layer,
            hint="leave it out, or take --format onnx, which ends at a layer",
        )
