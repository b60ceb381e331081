"""What every backbone that is registered must do, whatever its layers are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from small_steps import batches, same
from torch import Tensor
from torch.nn.functional import pad

from fastssl.backbones import BACKBONES, Backbone
from fastssl.backbones.alexnet import AlexNet
from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError
from fastssl.layers import xavier_initialise
from fastssl.methods import METHODS, StepContext, load_config

SMALL = BackboneSettings(width=0.1, fc_channels=24, init_gain=1.0)
CPU = torch.device("cpu")

every_backbone = pytest.mark.parametrize("name", BACKBONES)
every_method = pytest.mark.parametrize("method", METHODS)


def sizes(name: str, first: int = 1) -> Iterator[int]:
    """Sides of the square images that it takes, from `first` on."""
    for side in range(first, 600):
        with suppress(ConfigError):
            BACKBONES[name].check_size(side, side)
            yield side


def built(name: str, *, post_relu: bool = False) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[name](SMALL, post_relu=post_relu)


def image(side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


@every_backbone
def test_its_maps_are_those_it_tells_of(name: str) -> None:
    """Channels, strides and order, at the sizes that it takes."""
    with torch.device("meta"):
        backbone = built(name)
    assert backbone.name == name
    assert list(backbone.feature_info)[-1] == backbone.last
    assert backbone.compared in backbone.feature_info
    for side in islice(sizes(name, 64), 3):
        features = backbone(torch.empty(2, 3, side, side, device="meta"))
        assert list(features) == list(backbone.feature_info)
        for layer, (channels, stride) in backbone.feature_info.items():
            assert features[layer].shape[:2] == (2, channels)
            rows, columns = features[layer].shape[2:]
            # Borders cost a map some positions, and padding gives it some.
            assert rows == columns
            assert abs(rows - side / stride) <= 2


@every_backbone
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(name: str) -> None:
    taken = set(sizes(name))
    assert taken
    for side in range(1, 300):
        if side in taken:
            with torch.device("meta"):
                built(name)(torch.empty(2, 3, side, side))
            continue
        with pytest.raises(ConfigError) as refused:
            BACKBONES[name].check_size(side, side)
        assert refused.value.where == "data.size"
        named = {int(word.strip(",")) for word in str(refused.value.hint).split() if word.strip(",").isdigit()}
        assert named & taken, "the advice names a size that fits"


@every_backbone
def test_nothing_deeper_than_until_is_computed(name: str) -> None:
    backbone, seen = built(name).eval(), image(next(sizes(name, 64)))
    everything = backbone(seen)
    entered: list[str] = []
    for part, module in backbone.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_, part=part: entered.append(part))
    backbone(seen)
    order, layers = list(entered), list(backbone.feature_info)
    for number, layer in enumerate(layers, start=1):
        entered.clear()
        features = backbone(seen, until=layer)
        assert list(features) == layers[:number]
        assert all(torch.equal(features[one], everything[one]) for one in features)
        assert entered == order[: len(entered)]
        assert (len(entered) < len(order)) == (layer != backbone.last)
    with pytest.raises(ConfigError):
        backbone(seen, until="no such layer")


@every_backbone
def test_maps_are_after_the_relu_where_that_is_asked_for_and_the_last_always(name: str) -> None:
    seen = image(next(sizes(name, 64)))
    before, after = (built(name, post_relu=post_relu)(seen) for post_relu in (False, True))
    for layer, features in after.items():
        is_last = layer == BACKBONES[name].last
        assert features.min() >= 0
        assert (before[layer].min() < 0) != is_last
        torch.testing.assert_close(features, before[layer] if is_last else before[layer].relu())


@every_backbone
@pytest.mark.parametrize("post_relu", [False, True])
def test_every_map_can_be_differentiated(name: str, post_relu: bool) -> None:
    """A ReLU that overwrote what a loss or a norm still needs would make autograd fail here."""
    features = built(name, post_relu=post_relu)(image(next(sizes(name, 64))))
    gradients = torch.autograd.grad(sum(x.square().sum() for x in features.values()), list(features.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_backbone
def test_half_float_images_are_taken_in_the_weights_precision(name: str) -> None:
    backbone, seen = built(name).eval(), image(next(sizes(name, 64)), torch.float16)
    features = backbone(seen)
    assert {x.dtype for x in features.values()} == {torch.float32}
    assert all(torch.equal(x, y) for x, y in zip(features.values(), backbone(seen.float()).values(), strict=True))


@every_backbone
def test_its_weights_come_from_the_run_s_seed_alone(name: str) -> None:
    """Modules that the initialisation does not know would have theirs from torch's global generator."""
    made = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        backbone = BACKBONES[name](SMALL)
        xavier_initialise(backbone, 1.0, torch.Generator().manual_seed(0))
        made.append(backbone)
    assert same(*made)


@every_backbone
def test_a_layer_without_a_discriminator_is_refused_with_those_that_have_one(name: str) -> None:
    backbone = BACKBONES[name]
    assert set(backbone.discriminators) <= set(built(name).feature_info)
    with pytest.raises(ConfigError) as refused:
        backbone.patch_discriminator("no such layer")
    assert all(layer in str(refused.value) for layer in backbone.discriminators)


def small(name: str, method: str, layer: str = "none") -> Any:
    settings = {
        "data": {"size": next(sizes(name, 67))},
        "model": {"backbone": name, **SMALL.model_dump(exclude={"backbone"})},
    }
    if method == "cross_domain":
        settings["model"] |= {"adapted_layer": layer, "head_channels": 8}
    return load_config("tiny", method=method, settings=settings)


@every_method
@every_backbone
def test_every_method_trains_it(name: str, method: str) -> None:
    """Each layer that can be adapted is: losses are finite, and all of the backbone's weights move."""
    layers = BACKBONES[name].discriminators if method == "cross_domain" else ("none",)
    for layer in layers:
        config = small(name, method, layer)
        made = {
            domain: replace(batch, stored_size=(128, 128))
            for domain, batch in batches(0, size=config.data.size).items()
        }
        step = METHODS[method](config, StepContext(config, CPU))
        weights = [parameter for parameter in step.backbone.parameters() if parameter.dim() > 1]
        before = [weight.clone() for weight in weights]
        losses = step({request.name: made[request.name] for request in METHODS[method].domains(config)})
        assert all(loss.isfinite() for loss in losses.values())
        assert not any(torch.equal(old, new) for old, new in zip(before, weights, strict=True))
        assert step.compared_layer in step.backbone.feature_info


class Padded(AlexNet):
    """Its maps are one position larger than the heads need."""

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        return {layer: pad(x, (0, 1, 0, 1)) for layer, x in super().forward(image, until).items()}


def test_a_backbone_that_the_heads_do_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "padded", Padded)
    with pytest.raises(ConfigError, match=r"(?s)one prediction per pixel.*83 x 83 predictions of an image of 67 x 67"):
        load_config("tiny", overrides=["model.backbone=padded", "data.size=67"])
    assert load_config("tiny", method="rotation", overrides=["model.backbone=padded", "data.size=67"])
