"""Heads H: from the backbone's maps to one prediction per input pixel for each task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones import Backbone, HeadForm
from fastssl.batch import Task
from fastssl.errors import ConfigError
from fastssl.few_channels import FewOutputsConvTranspose2d

_OUTPUTS: dict[Task, int] = {"depth": 1, "normal": 3, "edge": 1}


class Heads(nn.Module):
    """H, with a head per task.

    Args:
        backbone: whose maps they read.
        tasks: one head each.
        channels: inside each head, where its map is largest.
        shortest_normal: a raw normal that is shorter is divided by this, and not by its own length.
    """

    def __init__(self, backbone: Backbone, tasks: Sequence[Task], channels: int, *, shortest_normal: float) -> None:
        super().__init__()
        self._backbone_info = backbone.feature_info
        self._has_relu, self._last = backbone.has_relu, backbone.last
        self._shortest_normal = shortest_normal
        self.build(tasks, channels)

    @abstractmethod
    def build(self, tasks: Sequence[Task], channels: int) -> None:
        """Make the modules."""

    @abstractmethod
    def raw(self, features: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        """Outputs by task, as `forward` gives them, but with normals of any length."""

    def forward(self, features: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        """Predictions, by task.

        Args:
            features: every map of the backbone, by layer, of images (N, 3, H, W).
            height: H.
            width: W.

        Returns:
            depth: (N, 1, H, W), logarithm of metres. normal: (N, 3, H, W) float32, unit vectors in the camera frame
            (the zero vector where a head that is not trained yet has no opinion).
            edge: (N, 1, H, W), logits of a contour passing through the pixel.
        """
        predictions = self.raw(features, height, width)
        if "normal" in predictions:  # in float32: half floats are off by too much for an angle
            predictions["normal"] = F.normalize(predictions["normal"].float(), dim=1, eps=self._shortest_normal)
        return predictions

    def read(self, features: Mapping[str, Tensor], layer: str) -> Tensor:
        """A map as the layers above it read it: after its ReLU, where it has one."""
        return features[layer].relu() if self._has_relu and layer != self._last else features[layer]


class TransposedHeads(Heads):
    """Transposed convolutions of the last map, with no weights shared between the tasks.

    Source: the authors' heads (docs/reproduction.md, section 3.4). Four transposed convolutions without padding lead
    from 13 to 27, 55, 113 and 227 pixels, and from k - 1 to 16 k + 3 at any other size. 7.5 M parameters for three
    tasks.
    """

    def build(self, tasks: Sequence[Task], channels: int) -> None:
        inputs = self._backbone_info[self._last].channels
        self.heads = nn.ModuleDict({task: _transposed_head(inputs, channels, _OUTPUTS[task]) for task in tasks})

    def raw(self, features: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        return {task: head(features[self._last]) for task, head in self.heads.items()}


class SkipHeads(Heads):
    """Transposed convolutions that double the map, each of which also reads the backbone's map of its size.

    Source: the authors' heads of VGG16 (docs/reproduction.md, section 3.9). The first is shared by all tasks. It has
    eight times, and those of a task four times, twice and once the channels that are set.
    """

    def build(self, tasks: Sequence[Task], channels: int) -> None:
        layers = list(self._backbone_info)
        self._skips = layers[-2:-5:-1]
        inputs = self._backbone_info[self._last].channels
        self.shared = nn.Sequential(*_doubling(inputs, 8 * channels))
        widths = [8 * channels, 4 * channels, 2 * channels, channels]
        self.heads = nn.ModuleDict()
        for task in tasks:
            stages = [
                nn.Sequential(*_doubling(below + self._backbone_info[skip].channels, above))
                for skip, (below, above) in zip(self._skips, pairwise(widths), strict=True)
            ]
            self.heads[task] = nn.ModuleList([*stages, nn.ConvTranspose2d(channels, _OUTPUTS[task], 3, padding=1)])

    def raw(self, features: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        """Raises a ConfigError where a map is not twice as large as the one above it."""
        shared = self.shared(features[self._last])
        skips = [self.read(features, layer) for layer in self._skips]
        predictions = {}
        for task, head in self.heads.items():
            assert isinstance(head, nn.ModuleList)
            *stages, last = head
            x = shared
            for layer, skip, stage in zip(self._skips, skips, stages, strict=True):
                if x.shape[2:] != skip.shape[2:]:
                    raise ConfigError(
                        "heads with skip connections do not fit this backbone and this size",
                        where="model.heads",
                        seen=f"skip, with a map of {layer} of {skip.shape[2]} x {skip.shape[3]}",
                        expected=f"a map of {x.shape[2]} x {x.shape[3]}, twice as large as that above it",
                        hint="set model.heads=light or model.heads=pyramid, which fit every backbone",
                    )
                x = stage(torch.cat([x, skip], dim=1))
            predictions[task] = last(x)
        return predictions


class PyramidHeads(Heads):
    """Steps that double the last map up to half the image, then the image itself, with no weights shared.

    Where the backbone has maps of a step's stride, the deepest of them is added. Sizes are whatever the maps have, so
    this form fits every backbone and every size.

    Source: the top-down way of Lin et al., Feature Pyramid Networks, CVPR 2017, carried on to the image, with batch
    norms, for each task by itself; an own choice (docs/reproduction.md, section 3.9).
    """

    def build(self, tasks: Sequence[Task], channels: int) -> None:
        stride = self._backbone_info[self._last].stride
        by_stride = {info.stride: layer for layer, info in self._backbone_info.items()}
        self._strides = []
        while stride > 2:
            stride = -(-stride // 2)
            self._strides.append(stride)
        self._laterals = {stride: by_stride[stride] for stride in self._strides if stride in by_stride}
        self.heads = nn.ModuleDict({task: self._head(channels, _OUTPUTS[task]) for task in tasks})

    def _head(self, channels: int, outputs: int) -> nn.ModuleDict:
        info = self._backbone_info
        return nn.ModuleDict(
            {
                "top": _normed(info[self._last].channels, channels, kernel=1),
                "laterals": nn.ModuleDict(
                    {
                        str(stride): _normed(info[layer].channels, channels, 1)
                        for stride, layer in self._laterals.items()
                    }
                ),
                "steps": nn.ModuleList(_normed(channels, channels, kernel=3) for _ in self._strides),
                "out": nn.Conv2d(channels, outputs, 3, padding=1),
            }
        )

    def raw(self, features: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        maps = {stride: self.read(features, layer) for stride, layer in self._laterals.items()}
        sizes = {stride: (-(-height // stride), -(-width // stride)) for stride in self._strides}
        sizes |= {stride: (x.shape[2], x.shape[3]) for stride, x in maps.items()}
        predictions = {}
        for task, head in self.heads.items():
            assert isinstance(head, nn.ModuleDict)
            laterals, steps = head["laterals"], head["steps"]
            assert isinstance(laterals, nn.ModuleDict)
            assert isinstance(steps, nn.ModuleList)
            x = F.relu(head["top"](features[self._last]))
            for stride, step in zip(self._strides, steps, strict=True):
                x = _resized(x, sizes[stride])
                if stride in maps:
                    x = x + laterals[str(stride)](maps[stride])
                x = F.relu(step(x))
            predictions[task] = head["out"](_resized(x, (height, width)))
        return predictions


class LightHeads(Heads):
    """The last map, brought up to the early maps one by one and joined with them; then a block of pixels at each place.

    No convolution works on a map larger than the backbone's own, which makes these the cheapest form on large images
    and on CPUs. The early maps are the deepest of each stride from 4 on (of each stride, where all are larger); the
    finest has the channels that are set, each before it twice as many. This form fits every backbone and every size.

    Source: an own choice; the block of pixels is the sub-pixel convolution of Shi et al., CVPR 2016
    (docs/reproduction.md, section 3.9).
    """

    def build(self, tasks: Sequence[Task], channels: int) -> None:
        by_stride = {info.stride: layer for layer, info in self._backbone_info.items()}
        last = self._backbone_info[self._last].stride
        strides = sorted((stride for stride in by_stride if 4 <= stride < last), reverse=True)
        self._early = [by_stride[stride] for stride in strides]
        self._block = min([*strides, last])
        widths = [channels << depth for depth in range(len(self._early), -1, -1)]
        self.heads = nn.ModuleDict({task: self._head(widths, _OUTPUTS[task]) for task in tasks})

    def _head(self, widths: Sequence[int], outputs: int) -> nn.ModuleDict:
        early = [self._backbone_info[layer].channels for layer in self._early]
        return nn.ModuleDict(
            {
                "top": _normed(self._backbone_info[self._last].channels, widths[0], kernel=1),
                "steps": nn.ModuleList(
                    _normed(below + skip, above, kernel=3)
                    for (below, above), skip in zip(pairwise(widths), early, strict=True)
                ),
                "out": nn.Conv2d(widths[-1], outputs * self._block**2, 3, padding=1),
            }
        )

    def raw(self, features: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        early = [self.read(features, layer) for layer in self._early]
        predictions = {}
        for task, head in self.heads.items():
            assert isinstance(head, nn.ModuleDict)
            steps = head["steps"]
            assert isinstance(steps, nn.ModuleList)
            x = F.relu(head["top"](features[self._last]))
            for skip, step in zip(early, steps, strict=True):
                x = F.relu(step(torch.cat([_resized(x, skip.shape[-2:]), skip], dim=1)))
            predictions[task] = _centred(F.pixel_shuffle(head["out"](x), self._block), height, width)
        return predictions


_FORMS: dict[HeadForm, type[Heads]] = {
    "transposed": TransposedHeads,
    "skip": SkipHeads,
    "pyramid": PyramidHeads,
    "light": LightHeads,
}


def build_heads(
    backbone: Backbone,
    tasks: Sequence[Task],
    channels: int,
    *,
    shortest_normal: float,
    form: HeadForm | Literal["auto"] = "auto",
) -> Heads:
    """Heads of a form, auto = that of the backbone's own paper; other arguments as those of `Heads`."""
    kind = _FORMS[backbone.heads if form == "auto" else form]
    return kind(backbone, tasks, channels, shortest_normal=shortest_normal)


def _transposed_head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *_upsampling(inputs, hidden, kernel=3),
        *_upsampling(hidden, hidden, kernel=3),
        *_upsampling(hidden, hidden, kernel=5),
        FewOutputsConvTranspose2d(hidden, outputs, 3, stride=2),
    )


def _upsampling(inputs: int, outputs: int, kernel: int, padding: int = 0) -> tuple[nn.Module, ...]:
    convolution = nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=padding)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _doubling(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return _upsampling(inputs, outputs, kernel=4, padding=1)


def _normed(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs))


def _middle(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of a map, of this size; beyond its borders a map goes on as it is there."""
    rows, columns = height - x.shape[-2], width - x.shape[-1]
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), mode="replicate")


# torch.compile expects another memory layout of such padding's gradient than there is.
_centred: Callable[[Tensor, int, int], Tensor] = torch.compiler.disable(_middle)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
