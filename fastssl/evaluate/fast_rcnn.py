"""Fast R-CNN: a backbone that tells what regions of an image show, and where exactly that is.

R. Girshick, *Fast R-CNN*, ICCV 2015, and the networks of its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.backbones.alexnet import AlexNet
from fastssl.batch import IMAGE_MEAN
from fastssl.errors import UsageError
from fastssl.evaluate.boxes import clipped, moved
from fastssl.evaluate.regions import Chosen, Offsets
from fastssl.extras import optional_package
from fastssl.layers import drawn_linear, fold_batch_norms, linear_of

_ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5")
_ALEXNET_BINS, _BINS = 6, 7
_CLASS_DEVIATION, _OFFSET_DEVIATION = 0.01, 0.001
_WIDTH = 256
"""Of images by which a stride is told: a multiple of any."""
_FARTHEST_SIDE = 512
"""Pixels beyond an image's side in which one is looked for that the backbone takes."""


def torchvision_operators() -> Any:
    """`torchvision.ops`, of which RoI pooling and suppression of what is not a maximum are used.

    Raises:
        UsageError: torchvision is not installed.
    """
    return optional_package("torchvision", where="eval voc-det", hint="pip install torchvision").ops


class AlexNetMaps(nn.Module):
    """AlexNet's map of conv5 after its ReLU, of images of any size, so padded that position n lies at pixel 16 n.

    Fast R-CNN's padding, 5 in front of conv1 and 1 of the poolings, whose sizes are rounded up, as Caffe's are.
    """

    stride = 16

    def __init__(self, folded: AlexNet) -> None:
        super().__init__()
        self.channels = folded.feature_info["conv5"].channels
        self.convolutions = nn.ModuleDict({name: folded.layers[name].get_submodule("conv") for name in _ALEXNET})
        first = self.convolutions["conv1"]
        assert isinstance(first, nn.Conv2d)
        first.padding = (5, 5)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, h, w)."""
        for name, convolution in self.convolutions.items():
            if name in ("conv2", "conv3"):
                images = F.max_pool2d(images, 3, 2, 1, ceil_mode=True)
            images = F.relu(convolution(images))
        return images


class LastMap(nn.Module):
    """The last map of a backbone; images are padded to a size that it takes."""

    def __init__(self, folded: Backbone) -> None:
        super().__init__()
        self.backbone = folded
        self.channels = folded.feature_info[folded.last].channels
        self.stride = self._stride()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, h, w).

        Raises:
            UsageError: the backbone takes no images so large.
        """
        height, width = (_side(type(self.backbone), side) for side in images.shape[-2:])
        padded = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        found: Tensor = self.backbone(padded)[self.backbone.last]
        return found

    @torch.no_grad()
    def _stride(self) -> float:
        """Pixels from one position to the next; what the backbone itself says may be rounded, as timm's models do."""
        height = self.backbone.small_side()
        narrow = _side(type(self.backbone), _WIDTH)
        widths = (narrow, _side(type(self.backbone), narrow + _WIDTH))
        device = next(self.backbone.parameters()).device
        columns = [self.forward(torch.zeros(1, 3, height, width, device=device)).shape[3] for width in widths]
        return (widths[1] - widths[0]) / (columns[1] - columns[0])


def _side(kind: type[Backbone], side: int) -> int:
    for candidate in range(side, side + _FARTHEST_SIDE):
        if kind.takes(candidate, candidate):
            return candidate
    raise UsageError("the backbone takes no images of a size that detection needs", where=kind.name, seen=side)


class Found(NamedTuple):
    """What a network says of regions."""

    scores: Tensor
    """(R, K + 1) logits, those of the background first."""
    offsets: Tensor
    """(R, K + 1, 4), normalised."""


class FastRCNN(nn.Module):
    """A backbone with its batch norms folded, RoI pooling of its map, two fully connected layers, scores and offsets.

    The layers that a backbone has are its own: AlexNet's fc6 and fc7. Of others these two are drawn, He et al., ICCV
    2015. Scores are drawn from N(0, 0.01), offsets from N(0, 0.001). The map is computed in evaluation mode always.

    Args:
        backbone: stays as it is.
        num_classes: without the background.
        fc_channels: of the layers that are drawn.
        dropout: of each of the two layers.
        frozen: deepest layer of the backbone that does not learn; none = all learn.
        seed: of what is drawn.

    Raises:
        UsageError: batch norms that cannot be folded, or no layer `frozen`.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, *, fc_channels: int, dropout: float, frozen: str, seed: int
    ) -> None:
        super().__init__()
        self._roi_pool = torchvision_operators().roi_pool
        folded = fold_batch_norms(backbone).requires_grad_(True)
        if frozen != "none":
            folded.check_layer(frozen)
            folded.freeze(frozen)
        generator = torch.Generator().manual_seed(seed)
        self.maps: AlexNetMaps | LastMap
        if isinstance(folded, AlexNet):
            self.maps, self._bins = AlexNetMaps(folded), _ALEXNET_BINS
            layers = [linear_of(folded.layers[name].get_submodule("conv")) for name in ("fc6", "fc7")]
            of_layers = "its own"
        else:
            self.maps, self._bins = LastMap(folded), _BINS
            inputs = self.maps.channels * self._bins**2
            layers = [
                drawn_linear(before, fc_channels, generator, (2 / before) ** 0.5) for before in (inputs, fc_channels)
            ]
            of_layers = "drawn"
        layer = "conv5" if isinstance(folded, AlexNet) else folded.last
        self.words = f"{folded.name}, batch norms folded, RoI pooling of {layer}, fc6 and fc7 {of_layers}"
        """What it is made of, for those who read numbers of it."""
        self.fc6, self.fc7 = layers
        self.dropout = dropout
        self.scores = drawn_linear(self.fc7.out_features, num_classes + 1, generator, _CLASS_DEVIATION)
        self.offsets = drawn_linear(self.fc7.out_features, 4 * (num_classes + 1), generator, _OFFSET_DEVIATION)

    def train(self, mode: bool = True) -> FastRCNN:
        """Training or evaluation mode, of all but the map."""
        super().train(mode)
        self.maps.eval()
        return self

    def forward(self, images: Tensor, regions: Tensor) -> Found:
        """Scores and offsets of regions.

        Args:
            images: (N, 3, H, W).
            regions: (R, 5): the number of the image, and a box in its pixels.
        """
        maps = self.maps(images)
        pooled = self._roi_pool(maps, regions, self._bins, 1 / self.maps.stride)
        hidden = pooled.flatten(1)
        for layer in (self.fc6, self.fc7):
            hidden = F.dropout(F.relu(layer(hidden)), self.dropout, self.training)
        offsets = self.offsets(hidden)
        return Found(self.scores(hidden), offsets.view(len(offsets), -1, 4))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """What learns, for an optimizer: biases at twice the rate, and without decay."""
        learning = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        biases = [parameter for name, parameter in learning if name.endswith("bias")]
        weights = [parameter for name, parameter in learning if not name.endswith("bias")]
        return [
            {"params": weights, "lr": lr, "weight_decay": weight_decay},
            {"params": biases, "lr": 2 * lr, "weight_decay": 0.0},
        ]


def loss_of_regions(found: Found, chosen: Chosen) -> Tensor:
    """Cross-entropy of the classes plus smooth L1 of the offsets of regions that show objects, the mean over all
    regions; Fast R-CNN, section 2.3."""
    shown = torch.nonzero(chosen.classes).flatten()
    offsets = found.offsets[shown, chosen.classes[shown]]
    of_offsets = F.smooth_l1_loss(offsets, chosen.offsets[shown], reduction="sum") / len(chosen.classes)
    return F.cross_entropy(found.scores, chosen.classes) + of_offsets


def boxes_of_regions(found: Found, boxes: Tensor, offsets: Offsets, width: int, height: int) -> Tensor:
    """Boxes of every class but the background, (R, K, 4), that were found beside regions (R, 4), within the image."""
    mean, deviation = (part[1:].to(boxes) for part in offsets)
    return clipped(moved(boxes[:, None], found.offsets[:, 1:] * deviation + mean), width, height)


def scaled(pixels: NDArray[Any], short: int, longest: int, device: torch.device) -> tuple[Tensor, float]:
    """An image as the backbone sees it, its shorter side `short` pixels long, unless the longer would exceed `longest`.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        (3, h, w) float32, less the mean of images; and by what its sides are multiplied.
    """
    height, width = pixels.shape[:2]
    scale = short / min(height, width)
    if round(scale * max(height, width)) > longest:
        scale = longest / max(height, width)
    image = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1).float() / 255
    image = image - torch.from_numpy(IMAGE_MEAN).to(image).view(3, 1, 1)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0], scale


def together(images: Sequence[Tensor]) -> Tensor:
    """Images, (3, h, w) each, as one tensor (N, 3, H, W); smaller ones are filled up with the mean colour, which is
    0."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


def numbered(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of images, (R, 4) each, behind the number of their image: (sum of R, 5)."""
    return torch.cat([torch.cat([torch.full_like(one[:, :1], n), one], dim=1) for n, one in enumerate(boxes)])
