"""What a file of weights says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import deflate
import torch
from torch import Tensor

from fastssl import __version__
from fastssl.batch import IMAGE_MEAN
from fastssl.config import BackboneSettings, Section
from fastssl.export.exporter import Weights

KEY = "fastssl"
"""Of a file's metadata, at which the header stands as JSON."""
CHECKSUM = "fastssl.crc32"
"""The same, for `checksum`; older files have none."""

_LICENCE = (
    "The licence of fastssl (Apache-2.0) is that of the code and not of these weights. Who trained them decides, "
    "within what the licences of the training images allow."
)


class Images(Section):
    """The images that a backbone wants."""

    size: int
    """Side in pixels that it was trained with; it takes others too (`Backbone.check_size`)."""
    channels: Literal["RGB"] = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    """Of the values before the mean is subtracted."""
    mean: tuple[float, ...] = tuple(round(float(value), 3) for value in IMAGE_MEAN)
    """Is subtracted."""
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    """By which is divided then: by nothing."""


class Layer(Section):
    """The map of a layer, as `fastssl.backbones.LayerInfo` has it."""

    channels: int
    stride: int


class Header(Section):
    """Where weights come from, and how they are used."""

    version: str = __version__
    """Of the fastssl that wrote them."""
    model: BackboneSettings
    """The backbone's name and size."""
    post_relu: bool
    """Maps are taken after the ReLU; the last layer's always is."""
    method: str
    seed: int
    step: int
    layer: str
    """The layer that was named, or else the one that the method's evaluations look at."""
    layers: dict[str, Layer]
    """In the order of computation."""
    images: Images
    licence: str = _LICENCE


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the bytes of all tensors in the order of their names, eight hexadecimal digits."""
    crc = 0
    for name in sorted(tensors):
        crc = deflate.crc32(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def header_of(weights: Weights) -> Header:
    """The header of weights that are exported."""
    backbone, config = weights.backbone, weights.config
    settings = {name: getattr(config.model, name) for name in BackboneSettings.model_fields}
    return Header(
        model=BackboneSettings(**settings),
        post_relu=backbone.post_relu,
        method=config.method,
        seed=config.train.seed,
        step=weights.step,
        layer=weights.layer or weights.compared_layer,
        layers={
            name: Layer(channels=info.channels, stride=info.stride) for name, info in backbone.feature_info.items()
        },
        images=Images(size=config.data.size),
    )
