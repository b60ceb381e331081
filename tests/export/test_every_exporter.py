"""What every exporter must do: its file, loaded as others do it, gives the run's features; a wrong one is not kept."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from made_weights import made_weights
from safetensors import safe_open
from torch import Tensor, nn

import fastssl
from fastssl.backbones import BACKBONES
from fastssl.cli.export import export as command
from fastssl.errors import FastsslError, UsageError
from fastssl.export import EXPORTERS, Weights
from fastssl.export.exporter import random_images
from fastssl.export.run import export_weights

Maps = dict[str, Tensor]
WIDE = {"width": 1.0}
"""The only width that other libraries have."""
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("safetensors", name, {}) for name in (*BACKBONES, "timm:test_vit", "timm:resnet10t")),
    ("safetensors", "alexnet", {"post_relu": True}),
    ("torchvision", "resnet50", WIDE),
    ("torchvision", "vgg16", WIDE),
    ("timm", "resnet50", WIDE),
    ("timm", "vgg16", WIDE),
    ("timm", "timm:test_vit", {}),
    ("timm", "timm:resnet10t", {}),
    *(("onnx", name, {}) for name in (*BACKBONES, "timm:test_vit")),
    ("onnx", "alexnet", {"layer": "conv3"}),
]
SMALLEST = {"safetensors": "alexnet", "torchvision": "vgg16", "timm": "timm:test_vit", "onnx": "alexnet"}

every_exporter = pytest.mark.parametrize("name", EXPORTERS)


def small(name: str) -> Weights:
    """Weights that an exporter takes, with little to write."""
    if name == "onnx":
        needs_onnx()
    return made_weights(SMALLEST[name], width=1.0 if name == "torchvision" else 0.1)


def needs_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `onnx` is not installed")


def loaded_safetensors(weights: Weights, path: Path, image: Tensor) -> Maps:
    """As its documentation has it, and the tensors' names and values as they are in the run."""
    state = weights.backbone.state_dict()
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in state.items())
    backbone = fastssl.load_backbone(path)
    assert not backbone.training
    assert backbone.feature_info == weights.backbone.feature_info
    maps: Maps = backbone(image)
    return maps


def pooled(weights: Weights, model: nn.Module, image: Tensor) -> Maps:
    """The mean over positions of the last map, as a classifier gets it."""
    return {f"mean of {weights.backbone.last}": model.eval()(image)}


def loaded_torchvision(weights: Weights, path: Path, image: Tensor) -> Maps:
    torchvision = pytest.importorskip("torchvision")
    state = torch.load(path, weights_only=True)
    if weights.backbone.name == "vgg16":
        return convolved(weights, torchvision.models.vgg16_bn, state, image)
    model = torchvision.models.resnet50()
    model.load_state_dict(state, strict=True)
    assert not model.eval()(image).any(), "fc is zeros"
    model.fc = nn.Identity()
    return pooled(weights, model, image)


def loaded_timm(weights: Weights, path: Path, image: Tensor) -> Maps:
    timm = pytest.importorskip("timm")
    name = weights.backbone.name.removeprefix("timm:")
    if name == "vgg16":
        state = torch.load(path, weights_only=True)
        return convolved(weights, lambda: timm.create_model("vgg16_bn"), state, image)
    model = timm.create_model(name, num_classes=0)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    if name != "test_vit":
        return pooled(weights, model, image)
    hooked: Maps = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, x, number=number: hooked.update({f"tokens of blocks_{number}": x}))
    model.eval()(image)
    return hooked


def convolved(weights: Weights, build: Callable[[], Any], state: Maps, image: Tensor) -> Maps:
    """VGG16 up to its last pooling."""
    with torch.device("meta"):
        features = build().features
    features.load_state_dict(state, strict=True, assign=True)
    return {f"pooled {weights.backbone.last}": features.eval()(image)}


def loaded_onnx(weights: Weights, path: Path, image: Tensor) -> Maps:
    session: Any = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ([weights.layer] if weights.layer else list(weights.backbone.feature_info))
    assert "Apache-2.0" in session.get_modelmeta().custom_metadata_map["fastssl"]
    return {
        name: torch.from_numpy(x) for name, x in zip(names, session.run(None, {"image": image.numpy()}), strict=True)
    }


LOADED = {
    "safetensors": loaded_safetensors,
    "torchvision": loaded_torchvision,
    "timm": loaded_timm,
    "onnx": loaded_onnx,
}


def expected(weights: Weights, name: str, image: Tensor) -> Tensor:
    """What a name of `LOADED` stands for, of the backbone itself."""
    *how, layer = name.split()
    map_: Tensor = weights.backbone(image)[layer]
    if how == ["mean", "of"]:
        return map_.relu().mean(dim=(2, 3))
    if how == ["pooled"]:
        return torch.nn.functional.max_pool2d(map_.relu(), 2)
    if how == ["tokens", "of"]:  # behind the class token
        return map_.flatten(2).transpose(1, 2)
    return map_


@pytest.mark.parametrize(("name", "backbone", "options"), CASES, ids=lambda value: str(value))
@torch.no_grad()
def test_the_features_come_back(name: str, backbone: str, options: dict[str, Any], tmp_path: Path) -> None:
    if name == "onnx":
        needs_onnx()
    weights = made_weights(backbone, **options)
    done = export_weights(weights, EXPORTERS[name], tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights").stat().st_size == done.num_bytes
    assert done.difference <= 1e-4
    side = 160 if backbone == "timm:test_vit" and name == "timm" else weights.config.data.size
    image = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(3))
    found = LOADED[name](weights, tmp_path / "weights", image)
    assert found
    for key, value in found.items():
        reference = expected(weights, key, image)
        value = value[:, 1:] if key.startswith("tokens") else value
        assert reference.std() > 0.01
        assert (value - reference).abs().max() <= 1e-4 * reference.abs().max(), key


def test_every_exporter_and_backbone_is_in_these_tests() -> None:
    assert {name for name, *_ in CASES} == set(EXPORTERS) == set(LOADED) == set(SMALLEST)
    assert set(BACKBONES) <= {backbone for name, backbone, _ in CASES if name == "safetensors"}
    option = inspect.signature(command, eval_str=True).parameters["name"].annotation.__metadata__[0]
    assert option.help == f"{', '.join(list(EXPORTERS)[:-1])} or {list(EXPORTERS)[-1]}."


@every_exporter
def test_a_file_with_other_features_is_not_kept(name: str, tmp_path: Path) -> None:
    """Of one convolution in the depth of the network, 2 % larger."""
    weights = small(name)
    other = replace(weights, backbone=copy.deepcopy(weights.backbone))
    *_, weight = (one for one in other.backbone.parameters() if one.dim() == 4 or SMALLEST[name] == "timm:test_vit")
    weight.detach().mul_(1.02).add_(0.02)

    class Wrong(EXPORTERS[name]):  # type: ignore[misc]
        @staticmethod
        def write(weights: Weights, file: BinaryIO) -> None:
            EXPORTERS[name].write(other, file)

    with pytest.raises(FastsslError, match=r"(?s)other features.*so it was not kept.*at most 0\.0001") as refused:
        export_weights(weights, Wrong, tmp_path / "weights")
    assert refused.value.exit_code == 1
    assert not list(tmp_path.iterdir())


@every_exporter
def test_a_file_that_cannot_be_loaded_is_not_kept_and_the_one_before_is(name: str, tmp_path: Path) -> None:
    class Torn(EXPORTERS[name]):  # type: ignore[misc]
        @staticmethod
        def write(weights: Weights, file: BinaryIO) -> None:
            EXPORTERS[name].write(weights, file)
            file.seek(file.tell() // 2)
            file.truncate()

    (tmp_path / "weights").write_text("the one before")
    with pytest.raises(FastsslError, match="cannot be loaded"):
        export_weights(small(name), Torn, tmp_path / "weights")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the one before"]


@every_exporter
def test_features_that_are_not_numbers_are_not_kept(name: str, tmp_path: Path) -> None:
    weights = small(name)
    next(iter(weights.backbone.parameters())).detach().fill_(float("nan"))
    with pytest.raises(FastsslError, match=r"(?s)a difference of inf.*not finite"):
        export_weights(weights, EXPORTERS[name], tmp_path / "weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_network_that_the_library_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    for weights, words in (
        (made_weights("alexnet"), "alexnet.*resnet50, vgg16"),
        (made_weights("resnet50", width=0.5), "model.width.*0.5"),
        (made_weights("resnet50", width=1.0, layer="conv3"), "--layer.*conv3"),
    ):
        with pytest.raises(UsageError, match=f"(?s){words}"):
            export_weights(weights, EXPORTERS[name], tmp_path / "weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "package", "cure"), [
    ("torchvision", "torchvision", "pip install torchvision"),
    ("timm", "timm", r"fastssl\[timm\]"),
    ("onnx", "onnx", r"fastssl\[onnx\]"),
    ("onnx", "onnxscript", r"fastssl\[onnx\]"),
])  # fmt: skip
def test_a_package_that_is_not_installed_is_named_with_what_brings_it(
    name: str, package: str, cure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = made_weights("vgg16", width=1.0)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=cure):
        export_weights(weights, EXPORTERS[name], tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_what_a_timm_model_has_behind_its_last_map_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export_weights(made_weights("timm:test_vit"), EXPORTERS["timm"], tmp_path / "weights")
    assert "not learnt but as timm initialises it: norm.weight, norm.bias" in caplog.text


def test_random_images_are_those_of_a_run() -> None:
    """Of a mean of 0.5 in 0..1 before ImageNet's mean is taken off."""
    image = random_images(64, 80, 5)
    assert image.shape == (5, 3, 64, 80)
    torch.testing.assert_close(image.mean(dim=(0, 2, 3)), torch.tensor([0.015, 0.044, 0.094]), rtol=0, atol=0.01)
