"""Weights that others have trained, against modules that were written after their layout."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.evaluate.foreign import foreign_subject
from fastssl.evaluate.imported import renamed


class AuthorsB(nn.Module):
    """AlexNet as the authors' release lays it out (docs/reproduction.md, section 3.3), by their names."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "conv1": (3, 96, 11, 4, 2, 1),
            "conv2": (96, 256, 5, 1, 2, 1),
            "conv3": (256, 384, 3, 1, 1, 1),
            "conv4": (384, 384, 3, 1, 1, 1),
            "conv5": (384, 256, 3, 1, 1, 1),
            "fc6": (256, 4096, 6, 1, 5, 2),
            "fc7": (4096, 4096, 1, 1, 0, 1),
        }
        for number, (name, shape) in enumerate(shapes.items(), start=1):
            self.add_module(name, nn.Conv2d(*shape))
            self.add_module(f"bn{number}", nn.BatchNorm2d(shape[1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """conv5 before its ReLU, and fc7 after it."""
        part = self.get_submodule
        x = nn.functional.max_pool2d(part("bn1")(part("conv1")(x)).relu(), 3, 2)
        x = nn.functional.max_pool2d(part("bn2")(part("conv2")(x)).relu(), 3, 2)
        x = part("bn3")(part("conv3")(x)).relu()
        x = part("bn4")(part("conv4")(x)).relu()
        conv5 = part("bn5")(part("conv5")(x))
        x = nn.functional.max_pool2d(conv5.relu(), 3, 1, 1)
        x = part("bn6")(part("fc6")(x)).relu()
        return conv5, part("bn7")(part("fc7")(x)).relu()


def with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation mode, its norms with numbers of a training."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value, low in ((norm.running_mean, -0.1), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, 0)):
                assert value is not None
                value.data.uniform_(low, low + 0.3, generator=generator)
    return model.eval()


@torch.no_grad()
def test_a_state_of_the_authors_gives_their_features(tmp_path: Path) -> None:
    model = with_statistics(AuthorsB())
    state = model.state_dict()
    old = {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "26_netB.pth")
    subject = foreign_subject(f"authors:{tmp_path / '26_netB.pth'}", "theirs")
    assert subject is not None
    assert (subject.layer, subject.config.data.size) == ("conv5", 227)
    image = torch.rand(1, 3, 67, 67) - 0.45
    found, (conv5, fc7) = subject.backbone(image), model(image)
    torch.testing.assert_close(found["conv5"], conv5, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["fc7"], fc7, atol=1e-4, rtol=1e-4)
    assert fc7.std() > 1e-2


@torch.no_grad()
def test_a_map_gives_names_of_others(tmp_path: Path) -> None:
    """VGG16 of torchvision, whose classifier is left out by name."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    model: Any = nn.Module()
    model.features, model.classifier = vgg.make_layers(vgg.cfgs["D"], batch_norm=True), nn.Linear(2, 2)
    with_statistics(model)
    names: dict[str, str | None] = {"classifier.weight": None, "classifier.bias": None}
    stage, place = 1, 0
    for number, module in enumerate(model.features):
        if isinstance(module, nn.MaxPool2d):
            stage, place = stage + 1, 0
            continue
        names |= {f"features.{number}.{part}": f"layers.conv{stage}.{place}.{part}" for part in module.state_dict()}
        place += 1
    torch.save(model.state_dict(), tmp_path / "vgg.pt")
    (tmp_path / "names.json").write_text(json.dumps(names))
    subject = foreign_subject(f"vgg16:{tmp_path / 'vgg.pt'},map={tmp_path / 'names.json'}", "theirs")
    assert subject is not None
    image = torch.rand(1, 3, 64, 64) - 0.45
    torch.testing.assert_close(subject.backbone(image)["conv5"], model.features[:-1](image), atol=1e-4, rtol=1e-4)
    ours = tmp_path / "ours.pt"
    torch.save(subject.backbone.state_dict(), ours)
    again = foreign_subject(f"vgg16:{ours}", "ours")
    assert again is not None
    for name, value in again.backbone.state_dict().items():
        assert torch.equal(value, subject.backbone.state_dict()[name]), name


OWN = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2), "norm.num_batches_tracked": torch.tensor(0)}
NAMES: dict[str, str | None] = {"w": "conv.weight", "b": "conv.bias", "more": None}


@pytest.mark.parametrize(
    ("state", "names", "message"),
    [
        ({"w": torch.ones(2, 3)}, NAMES, r"weights are missing(.|\n)*netB.pth\n  seen: no b\n"),
        ({"x": torch.ones(1), "y": torch.ones(1)}, NAMES, r"not known(.|\n)*seen: x and 1 more\n  expected: .* w"),
        ({"w": torch.ones(3, 2), "b": torch.ones(2)}, NAMES, r"(?s)another shape.*netB.pth: w.*\(3, 2\).*\(2, 3\)"),
        ({}, NAMES, r"weights are missing(.|\n)*no w and 1 more"),
        (
            {"w": torch.ones(2, 3), "b": torch.ones(2), "c": torch.ones(2)},
            {**NAMES, "c": "conv.shift"},
            r"backbone does not have(.|\n)*conv.shift",
        ),
    ],
)
def test_names_are_strict_both_ways(state: dict[str, Tensor], names: dict[str, str | None], message: str) -> None:
    whole = {"w": torch.ones(2, 3), "module.b": torch.ones(2)}
    with pytest.raises(DataError, match=message):
        renamed(state, names, OWN, Path("netB.pth"))
    with pytest.raises(DataError, match="not known"):  # a prefix of some is none
        renamed(whole, NAMES, OWN, Path("netB.pth"))
    good = renamed({"w": torch.ones(2, 3), "b": torch.ones(2), "more": torch.ones(1)}, NAMES, OWN, Path("netB.pth"))
    assert good.keys() == OWN.keys()
    assert good["conv.weight"].sum() == 6


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        foreign_subject(f"authors:{tmp_path / 'gone.pth'}", "theirs")
    torch.save({"epoch": 3, "state": {"w": torch.ones(1)}}, tmp_path / "whole.pth")
    with pytest.raises(DataError, match=r"no state dict(.|\n)*dict with epoch, state"):
        foreign_subject(f"vgg16:{tmp_path / 'whole.pth'}", "theirs")
    for name in ("", "a"):
        (tmp_path / "text.pth").write_text(name)
        with pytest.raises(DataError, match=r"text.pth(.|\n)*no file of tensors alone"):
            foreign_subject(f"authors:{tmp_path / 'text.pth'}", "theirs")
    torch.save({"w": torch.ones(2), "b": torch.tensor([1.0, math.inf])}, tmp_path / "spoiled.pth")
    with pytest.raises(DataError, match=r"not finite(.|\n)*seen: b"):
        foreign_subject(f"authors:{tmp_path / 'spoiled.pth'}", "theirs")
    for words in ("authors:", f"vgg16:{tmp_path / 'whole.pth'},map="):
        with pytest.raises(UsageError, match="a file is not named"):
            foreign_subject(words, "theirs")
    maps = {"a: 3\n": "no name", "a: x\nb: x\n": "twice", "[": "not valid YAML", "": "the map of names is empty"}
    for text, message in maps.items():
        (tmp_path / "names.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            foreign_subject(f"vgg16:{tmp_path / 'whole.pth'},map={tmp_path / 'names.yaml'}", "theirs")
