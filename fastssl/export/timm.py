"""Format `timm`: a state dict for timm's own models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from fastssl.backbones import TimmModel
from fastssl.backbones.vgg16 import VGG16
from fastssl.export.exporter import (
    Weights,
    largest_difference,
    plain_copy,
    random_images,
    refuse_layer,
    write_state,
)
from fastssl.export.published import PUBLISHED, check_published, published_state, vgg_maps
from fastssl.extras import optional_package

log = logging.getLogger(__name__)


class Timm:
    """`resnet50` and every backbone `timm:NAME`, for that model of timm with `num_classes=0`, and `vgg16`, for the
    `features` of timm's vgg16_bn.

    All keys are there, so that they load strictly. What a model has behind its last map, such as a transformer's last
    norm, is not learnt here: it is as timm initialises it, and a warning names it.
    """

    name: ClassVar[str] = "timm"

    @staticmethod
    def check(weights: Weights) -> None:
        """Models of timm, and networks that it has as they are here."""
        if isinstance(weights.backbone, TimmModel):
            refuse_layer(weights, Timm.name)
        else:
            check_published(weights, Timm.name, (*PUBLISHED, "timm:NAME"))
        _timm()

    @staticmethod
    def write(weights: Weights, file: BinaryIO) -> None:
        """A state dict by `torch.save`."""
        backbone = weights.backbone
        write_state(_model_state(backbone) if isinstance(backbone, TimmModel) else published_state(weights), file)

    @staticmethod
    def verify(weights: Weights, path: Path) -> float:
        """In timm's model, with images of the size that it was published for; maps of ours are after a ReLU."""
        backbone, side = weights.backbone, weights.config.data.size
        if isinstance(backbone, VGG16):
            with torch.device("meta"):  # its 124 M parameters behind the last map are not wanted
                features = _timm().create_model("vgg16_bn").features
            features.load_state_dict(torch.load(path, weights_only=True), assign=True)
            image = random_images(side, side)
            found = vgg_maps(weights, features.eval(), image)
            return largest_difference(found, weights.features_after_relu(image))
        model = _timm().create_model(_model_name(weights), num_classes=0, checkpoint_path=str(path)).eval()
        image = random_images(*model.pretrained_cfg["input_size"][-2:])
        expected = weights.features(image) if isinstance(backbone, TimmModel) else weights.features_after_relu(image)
        return largest_difference(_maps(model, image, list(expected)), expected)

    @staticmethod
    def usage(weights: Weights, path: Path) -> str:
        if isinstance(weights.backbone, VGG16):
            return f"timm.create_model('vgg16_bn').features.load_state_dict(torch.load({str(path)!r}))"
        return f"timm.create_model({_model_name(weights)!r}, num_classes=0, checkpoint_path={str(path)!r})"


def _model_name(weights: Weights) -> str:
    return weights.backbone.model_name if isinstance(weights.backbone, TimmModel) else weights.backbone.name


def _model_state(backbone: TimmModel) -> dict[str, Tensor]:
    """The backbone's tensors, and those behind its last map as timm draws them from the seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        state = _timm().create_model(backbone.model_name, num_classes=0).state_dict()
    learnt = backbone.model.state_dict()
    if others := [name for name in state if name not in learnt]:
        log.warning("behind the last map, so not learnt but as timm initialises it: %s", ", ".join(others))
    return {name: plain_copy(value) for name, value in (state | learnt).items()}


@torch.no_grad()
def _maps(model: Any, image: Tensor, layers: list[str]) -> dict[str, Tensor]:
    maps = model.forward_intermediates(image, indices=list(range(len(layers))), intermediates_only=True)
    return dict(zip(layers, maps, strict=True))


def _timm() -> Any:
    return optional_package("timm", where="--format timm", hint="pip install 'fastssl[timm]'")
