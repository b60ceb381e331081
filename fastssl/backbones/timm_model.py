"""Backbones `timm:NAME`: every model of timm that gives its maps, by its name there (extra `timm`)."""

from __future__ import annotations

import difflib
import inspect
import logging
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastssl.backbones.backbone import Backbone, LayerInfo, patch_convolutions
from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError
from fastssl.extras import optional_package

log = logging.getLogger(__name__)

PREFIX = "timm:"

# What lets a model take images of other sizes than it was published for, where its class knows the word.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
_SEARCHED = 16
"""Multiples of the last stride, on either side, among which a size that fits is looked for."""


class TimmModel(Backbone):
    """B, from an image to the maps of the layers that timm's `feature_info` lists.

    A layer is named as its module in timm, with `_` for dots: layer1 of a ResNet, blocks_3 of a transformer. Maps are
    as timm gives them, after whatever ends the layer. Channels are those of the model, whatever `width` says, and so is
    the initialisation: timm's own, drawn from the run's generator. What lies behind the last map is taken away.

    Each model is a subclass of its own, by `timm_backbone`.
    """

    model_name: ClassVar[str]
    layer_info: ClassVar[dict[str, LayerInfo]]

    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__(settings)
        self.feature_info = dict(self.layer_info)
        self.model = _created(self.model_name)

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """Features of every layer up to and including `until` (None: all).

        Args:
            image: (N, 3, H, W) floats of any precision.
            until: name of the deepest layer that is computed.

        Returns:
            By layer, in the order of computation, (N, C, h, w).

        Raises:
            ConfigError: an image of a size that the model does not take, or no such layer.
        """
        self.check_size(*image.shape[-2:])
        layers = list(self.feature_info)
        if until is not None:
            self.check_layer(until)
            layers = layers[: layers.index(until) + 1]
        maps = _maps(self.model, self.as_weights(image), len(layers))
        return dict(zip(layers, maps, strict=True))

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Sizes that the model itself takes, with a position of the last map at least.

        Raises:
            ConfigError: another one, with what timm says of it; near ones that it takes are named.
        """
        if _refusal(cls.model_name, height, width) is None:
            return
        raise ConfigError(
            f"the image's size does not fit {cls.name}",
            where="data.size",
            seen=f"{height} x {width}",
            expected=_refusal(cls.model_name, height, width),
            hint=f"set data.size to {' or '.join(map(str, cls._sides_near(height)))}",
        )

    @classmethod
    def _sides_near(cls, side: int) -> list[int]:
        """The next smaller and the next larger side that fit, among multiples of the last stride."""
        stride = max(info.stride for info in cls.layer_info.values())
        below = range(side // stride, max(0, side // stride - _SEARCHED), -1)
        above = range(side // stride + 1, side // stride + 1 + _SEARCHED)
        found = [
            next((k * stride for k in numbers if _refusal(cls.model_name, k * stride, k * stride) is None), None)
            for numbers in (below, above)
        ]
        published: int = _shape_model(cls.model_name).pretrained_cfg["input_size"][-1]
        return [fits for fits in found if fits is not None] or [published]

    def draw_weights(self, generator: torch.Generator) -> None:
        """Timm's own initialisation, anew.

        Args:
            generator: a CPU generator, the only source of randomness.
        """
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))  # also where all else lies on no device
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # timm draws from it alone
            self.model.load_state_dict(_created(self.model_name).state_dict())


@cache
def timm_backbone(name: str) -> type[Backbone]:
    """The backbone of a timm model.

    Args:
        name: with its prefix.

    Raises:
        ConfigError: timm has no such model, or the model gives no maps; the nearest name is offered.
        UsageError: timm is not installed.
    """
    timm = _timm()
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name):
        nearest = difflib.get_close_matches(model_name, timm.list_models(), n=3)
        offered = ", ".join(PREFIX + one for one in nearest)
        raise ConfigError(
            "timm has no such model",
            where="model.backbone",
            seen=name,
            expected=f"{offered}?" if nearest else "a name of timm.list_models()",
        )
    info = _layer_info(model_name)
    if not info:
        raise ConfigError("this model of timm gives no maps", where="model.backbone", seen=name)
    last = list(info)[-1]
    members = {
        "name": name,
        "model_name": model_name,
        "layer_info": info,
        "last": last,
        "compared": last,
        "discriminators": {layer: patch_convolutions(*one) for layer, one in info.items()},
        "__doc__": f"timm's {model_name}.",
    }
    return type("TimmModel", (TimmModel,), members)


def _timm() -> Any:
    return optional_package("timm", where="model.backbone", hint="pip install 'fastssl[timm]'")


def _created(model_name: str) -> Any:
    """A model up to its last map, with timm's initialisation."""
    timm = _timm()
    known = {name for kind in type(_plain(model_name)).__mro__ for name in inspect.signature(kind).parameters}
    options = {name: value for name, value in _ANY_SIZE.items() if name in known}
    model = timm.create_model(model_name, pretrained=False, **options)
    if hasattr(model, "prune_intermediate_layers"):
        model.prune_intermediate_layers(list(range(len(model.feature_info))), prune_norm=True)
    return model


@cache
def _plain(model_name: str) -> nn.Module:
    """A model without content, as its name alone makes it."""
    with torch.device("meta"):
        model: nn.Module = _timm().create_model(model_name, pretrained=False)
    return model


@cache
def _shape_model(model_name: str) -> Any:
    """A model without content, for its shapes."""
    with torch.device("meta"):
        return _created(model_name)


def _maps(model: Any, image: Tensor, number: int) -> list[Tensor]:
    """The first maps, and nothing behind them computed."""
    maps: list[Tensor] = model.forward_intermediates(
        image, indices=list(range(number)), stop_early=True, intermediates_only=True
    )
    return maps


def _layer_info(model_name: str) -> dict[str, LayerInfo]:
    """Layers and their maps, as a pass of the published size gives them; none where timm gives no maps.

    Measured, as what timm lists of channels and strides is not right for every model.
    """
    model = _shape_model(model_name)
    listed = getattr(model, "feature_info", ())
    if not listed or not hasattr(model, "forward_intermediates"):
        return {}
    height, width = model.pretrained_cfg["input_size"][-2:]
    try:
        with torch.no_grad(), torch.device("meta"):
            maps = _maps(model, torch.empty(2, 3, height, width), len(listed))
    except (AssertionError, IndexError, RuntimeError) as error:
        log.info("timm's %s gives no maps: %s", model_name, error)
        return {}
    names = [entry["module"].replace(".", "_") or f"map_{number}" for number, entry in enumerate(listed)]
    return {name: LayerInfo(x.shape[1], round(height / x.shape[2])) for name, x in zip(names, maps, strict=True)}


@cache
def _refusal(model_name: str, height: int, width: int) -> str | None:
    """Why a model does not take images of a size, in timm's words; None where it does."""
    model = _shape_model(model_name)
    stride = max(entry["reduction"] for entry in model.feature_info)
    if min(height, width) < stride:
        return f"sides of at least {stride}"
    try:
        with torch.no_grad(), torch.device("meta"):
            _maps(model, torch.empty(2, 3, height, width), len(model.feature_info))
    except (AssertionError, RuntimeError, ValueError) as error:  # shapes that do not go together
        return str(error).splitlines()[0]
    return None
