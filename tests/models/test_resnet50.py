"""ResNet-50: against torchvision's network with the same weights."""

from __future__ import annotations

import pytest
import torch

from fastssl.backbones.resnet50 import ResNet50
from fastssl.config import BackboneSettings


@pytest.mark.parametrize("training", [False, True])
def test_it_is_torchvision_s_resnet50(training: bool) -> None:
    """By their names of the parameters; the maps are those of the stem and of each stage."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).train(training)
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours = ResNet50(BackboneSettings(), post_relu=True).train(training)
    assert ours.state_dict().keys() == state.keys()
    ours.load_state_dict(state)
    image = torch.randn(2, 3, 67, 50)
    with torch.no_grad():
        features = ours(image)
        x = theirs.relu(theirs.bn1(theirs.conv1(image)))
        expected = [x]
        x = theirs.maxpool(x)
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            expected.append(x)
    for map_, reference in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(map_, reference, rtol=1e-4, atol=1e-5)


def test_the_published_network_has_23_5_million_parameters() -> None:
    with torch.device("meta"):
        backbone = ResNet50(BackboneSettings())
    assert [tuple(info) for info in backbone.feature_info.values()] == [
        (64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)
    ]  # fmt: skip
    # He et al.'s 25.56 M, without the classifier's 2048 * 1000 + 1000
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6 + 2.049, 2) == 25.56
