"""What every backbone that is registered must do, whatever its layers are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import combinations, islice
from typing import Any

import pytest
import torch
from small_steps import batches, same
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from fastssl.backbones import BACKBONES, Backbone, find_backbone
from fastssl.backbones.alexnet import AlexNet
from fastssl.batch import PLANES, Task
from fastssl.config import BackboneSettings
from fastssl.errors import ConfigError, UsageError
from fastssl.layers import JointPass, xavier_initialise
from fastssl.methods import METHODS, Method, StepContext, load_config
from fastssl.methods.cross_domain import Networks

SMALL = BackboneSettings(width=0.1, fc_channels=24, init_gain=1.0)
CPU = torch.device("cpu")

# Of timm, which has more than a thousand: one with patches, and others for a soak.
TIMM = ("timm:test_vit",)
MORE_OF_TIMM = (
    "timm:mobilenetv3_small_050",
    "timm:resnet10t", "timm:vit_tiny_patch16_224", "timm:test_convnext", "timm:test_efficientnet", "timm:regnetx_002",
    "timm:swin_tiny_patch4_window7_224", "timm:mobilevit_xxs",
)  # fmt: skip
FEW = (*BACKBONES, *TIMM)
NAMES = [*FEW, *(pytest.param(name, marks=pytest.mark.soak) for name in MORE_OF_TIMM)]
SUBSETS = [tasks for number in (1, 2, 3) for tasks in combinations(PLANES, number)]

every_backbone = pytest.mark.parametrize("name", NAMES)
every_method = pytest.mark.parametrize("method", METHODS)


SIDES = (*range(1, 64), 64, 65, 67, 80, 99, 128)


def taken(name: str, sides: Iterable[int]) -> Iterator[int]:
    """Those of the sides that square images may have."""
    for side in sides:
        with suppress(ConfigError):
            find_backbone(name).check_size(side, side)
            yield side


def sizes(name: str, first: int = 1) -> Iterator[int]:
    """Sides of the square images that it takes, from `first` on."""
    return taken(name, range(first, 1000))


def built(name: str, *, post_relu: bool = False) -> Backbone:
    torch.manual_seed(0)
    return find_backbone(name)(SMALL, post_relu=post_relu)


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
    with torch.device("meta"):
        backbone = built(name)
    fitting = list(taken(name, SIDES))
    assert fitting
    for side in fitting[::8]:
        backbone(torch.empty(2, 3, side, side, device="meta"))
    for side in set(SIDES) - set(fitting):
        with pytest.raises(ConfigError) as refused:
            find_backbone(name).check_size(side, side)
        assert refused.value.where == "data.size"
        named = [int(word.strip(",")) for word in str(refused.value.hint).split() if word.strip(",").isdigit()]
        assert named
        assert list(taken(name, named)) == named, "the advice names sizes that fit"


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
        if not find_backbone(name).has_relu:
            assert torch.equal(features, before[layer])
            continue
        is_last = layer == find_backbone(name).last
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
        backbone = find_backbone(name)(SMALL)
        xavier_initialise(backbone, 1.0, torch.Generator().manual_seed(0))
        made.append(backbone)
    assert same(*made)


@every_backbone
def test_a_layer_without_a_discriminator_is_refused_with_those_that_have_one(name: str) -> None:
    backbone = find_backbone(name)
    assert set(backbone.discriminators) <= set(built(name).feature_info)
    with pytest.raises(ConfigError) as refused:
        backbone.patch_discriminator("no such layer")
    assert all(layer in str(refused.value) for layer in backbone.discriminators)


def small(
    name: str, method: str, layer: str = "none", tasks: Sequence[Task] = PLANES, *more: str, frozen: str = "none"
) -> Any:
    model = {"backbone": name, "frozen": frozen, **SMALL.model_dump(exclude={"backbone", "frozen"})}
    if method == "cross_domain":
        model |= {"adapted_layer": layer, "head_channels": 8, "tasks": tuple(tasks)}
    settings = {"data": {"size": next(sizes(name, 64))}, "model": model}
    return load_config("tiny", method=method, settings=settings, overrides=more)


def started(config: Any) -> Method:
    return METHODS[config.method](config, StepContext(config, CPU))


def stepped(method: Any, steps: int) -> dict[str, Tensor]:
    """The losses of the last step."""
    for number in range(steps):
        made = {
            domain: replace(batch, stored_size=(128, 128))
            for domain, batch in batches(number, size=method.config.data.size).items()
        }
        losses = method({request.name: made[request.name] for request in method.domains(method.config)})
        assert all(loss.isfinite() for loss in losses.values())
    return losses


def is_refused(name: str, method: str) -> bool:
    """The method cannot halve the backbone's channels, and says so."""
    if method != "split_brain" or name in BACKBONES:
        return False
    with pytest.raises(ConfigError, match=r"(?s)two halves.*model\.backbone.*alexnet, vgg16 or resnet50"):
        small(name, method)
    return True


def trains(name: str, method: str, layer: str, tasks: Sequence[Task], *more: str) -> None:
    """Three steps: losses are finite, those of the tasks are there, and all of the backbone's weights move."""
    step = started(small(name, method, layer, tasks, *more))
    weights = [parameter for parameter in step.backbone.parameters() if parameter.dim() > 1]
    before = [weight.clone() for weight in weights]
    losses = stepped(step, 3)
    assert not any(torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    assert step.compared_layer in step.backbone.feature_info
    if method == "cross_domain":
        assert set(losses) == set(tasks) | (set() if layer == "none" else {"adversarial", "discriminator"})


@every_method
@every_backbone
def test_every_method_trains_it(name: str, method: str) -> None:
    """Each layer that can be adapted is, and each subset of the tasks is learnt."""
    if is_refused(name, method):
        return
    if method != "cross_domain":
        trains(name, method, "none", PLANES)
        return
    layers = list(find_backbone(name).discriminators)
    assert layers
    for number in range(max(len(layers), len(SUBSETS))):
        trains(name, method, layers[number % len(layers)], SUBSETS[number % len(SUBSETS)])


@every_backbone
def test_both_domains_pass_together_up_to_a_layer(name: str) -> None:
    """With fixed statistics that is the same as apart; above it the first alone go on, unless nothing is normalised."""
    backbone = built(name).eval()
    side = next(sizes(name, 64))
    first, second = image(side), image(side)[:1] + 0.5
    layers = list(backbone.feature_info)
    if not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        networks = Networks(small(name, "cross_domain", layers[0], PLANES, "model.passes=joint").model)
        assert networks.joint_pass is None
        return
    for layer in (layers[0], layers[-2]):
        backbone, taken = built(name).eval(), dict[nn.Module, int]()
        joint_pass = JointPass(backbone, layer)
        for module in backbone.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_hook(lambda module, x, _, taken=taken: taken.update({module: len(x[0])}))
        with torch.no_grad():
            features, z = joint_pass(first, second)
            numbers = list(taken.values())
            expected = backbone(first)
            torch.testing.assert_close(z, backbone(second, until=layer)[layer], rtol=1e-4, atol=1e-4)
            taken.clear()
            backbone(first, until=layer)
        assert numbers == [3] * len(taken) + [2] * (len(numbers) - len(taken))
        assert len(numbers) > len(taken)
        assert features.keys() == expected.keys()
        for key, x in features.items():
            torch.testing.assert_close(x, expected[key], rtol=1e-4, atol=1e-4)


@every_backbone
def test_it_trains_with_the_adversary_in_its_other_forms(name: str) -> None:
    layer = next(iter(find_backbone(name).discriminators))
    trains(
        name, "cross_domain", layer, PLANES, "model.passes=joint", "model.discriminator_norm=joint", "loss.pushed=both"
    )
    trains(name, "cross_domain", layer, PLANES, "model.discriminator_norm=spectral")


@pytest.mark.soak
@every_backbone
def test_every_layer_is_adapted_with_every_subset_of_the_tasks(name: str) -> None:
    for layer in ("none", *find_backbone(name).discriminators):
        for tasks in SUBSETS:
            trains(name, "cross_domain", layer, tasks)


@every_backbone
def test_the_heads_give_one_prediction_per_pixel_at_every_size(name: str) -> None:
    with torch.device("meta"):
        networks = Networks(small(name, "cross_domain").model)
        sides = list(islice(sizes(name), 0, 40, 7))
        for height, width in zip(sides, reversed(sides), strict=True):
            with suppress(ConfigError):
                networks.backbone.check_size(height, width)
                predictions = networks.predict(torch.empty(2, 3, height, width))
                assert {task: tuple(x.shape) for task, x in predictions.items()} == {
                    task: (2, 3 if task == "normal" else 1, height, width) for task in PLANES
                }


@cache
def matters(name: str, layer: str) -> set[str]:
    """The entries of a backbone's state that change a layer's map, found by changing one after the other."""
    backbone, seen = built(name).double().eval(), image(next(sizes(name, 64)))
    state = {key: value for key, value in backbone.state_dict().items() if value.is_floating_point()}
    with torch.no_grad():
        for key, value in state.items():  # none is zero, or it would hide others
            value += 0.1 * (torch.rand(value.shape) if "var" in key else torch.randn(value.shape))
        before, found = backbone(seen, until=layer)[layer], set()
        for key, value in state.items():
            kept = value.clone()
            value.copy_(1.5 * value + 0.1 * torch.rand(value.shape))
            if not torch.equal(backbone(seen, until=layer)[layer], before):
                found.add(key)
            value.copy_(kept)
    counted = {key.removesuffix("running_mean") + "num_batches_tracked" for key in found if "running_mean" in key}
    return found | counted


@every_method
@every_backbone
def test_frozen_layers_stay_as_they_are_and_others_learn(name: str, method: str) -> None:
    """Bit for bit, weights and statistics, also after the networks were in evaluation mode for a picture."""
    if is_refused(name, method):
        return
    layers = list(built(name).feature_info)
    for layer in (layers[len(layers) // 2], layers[-1]):
        above = [one for one in find_backbone(name).discriminators if layers.index(one) > layers.index(layer)]
        step = started(small(name, method, above[-1] if above else "none", frozen=layer))
        frozen = {f"backbone.{key}" for key in matters(name, layer)}
        before = {key: value.clone() for key, value in step.networks.state_dict().items()}
        assert frozen
        stepped(step, 1)
        step.networks.eval()
        step.networks.train()
        stepped(step, 1)
        weights = {key for key, parameter in step.networks.named_parameters() if parameter.dim() > 1}
        for key, value in step.networks.state_dict().items():
            if key in frozen:
                assert torch.equal(value, before[key]), key
            elif key in weights or "running" in key:
                assert not torch.equal(value, before[key]), key
        assert step.backbone.training


@every_method
def test_a_frozen_layer_that_there_is_not_is_refused_with_those_that_there_are(method: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.frozen.*conv6.*none, conv1.*fc7"):
        load_config("tiny", method=method, overrides=["model.frozen=conv6"])


def test_a_layer_cannot_be_frozen_and_adapted() -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.adapted_layer.*conv3, with model\.frozen=conv4"):
        load_config("tiny", overrides=["model.frozen=conv4", "model.adapted_layer=conv3"])
    assert load_config("tiny", overrides=["model.frozen=conv4", "model.adapted_layer=conv5"])


def test_a_name_that_timm_has_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.backbone.*timm:resnet50"):
        find_backbone("timm:resnet5O")
    with pytest.raises(ConfigError, match=r"(?s)vgg16.*timm:NAME"):
        find_backbone("vgg61")


def test_without_timm_its_models_are_refused_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"fastssl\[timm\]"):
        find_backbone("timm:resnet18d")


def test_a_map_before_the_relu_is_refused_where_there_is_none() -> None:
    settings = ["model.backbone=timm:test_vit", "model.adapted_layer=blocks_2", "data.size=64"]
    assert load_config("tiny", overrides=settings)
    with pytest.raises(ConfigError, match=r"(?s)model\.adapted_feature.*post_relu"):
        load_config("paper", overrides=settings)


class Padded(AlexNet):
    """Its maps are one position larger than the heads need."""

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        return {layer: pad(x, (0, 1, 0, 1)) for layer, x in super().forward(image, until).items()}


def test_a_backbone_that_the_heads_do_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "padded", Padded)
    with pytest.raises(ConfigError, match=r"(?s)one prediction per pixel.*83 x 83 predictions of an image of 67 x 67"):
        load_config("tiny", overrides=["model.backbone=padded", "model.heads=auto", "data.size=67"])
    assert load_config("tiny", method="rotation", overrides=["model.backbone=padded", "data.size=67"])
