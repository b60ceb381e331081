"""A backbone with heads that predict planes, as an evaluation trains them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones import Backbone, HeadForm
from fastssl.batch import Task
from fastssl.errors import ConfigError, UsageError
from fastssl.evaluate.subject import Subject
from fastssl.layers.heads import Heads, build_heads
from fastssl.train import run_device

_MOST_MARGIN = 32
"""Pixels: no stride of a known backbone is larger."""
_SHORTEST_NORMAL = 1e-4
"""As in a run's own settings, of heads that are new."""


class DenseNetwork(nn.Module):
    """B and H, copies of a subject's own or new heads, for images of any size that the backbone takes."""

    def __init__(self, backbone: Backbone, heads: Heads, tasks: Sequence[Task], *, new_heads: str) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads
        self._tasks, self._new_heads = tuple(tasks), new_heads
        self._keeps_backbone = False

    @property
    def has_new_heads(self) -> bool:
        """Nobody has trained the heads yet."""
        return bool(self._new_heads)

    @property
    def origin(self) -> str:
        """Where the heads are from, in words."""
        return self._new_heads or "the run's own"

    def keep_backbone(self, keeps: bool) -> None:
        """Let the backbone stay as it is, or not: its statistics too, and without gradients that nobody uses."""
        self._keeps_backbone = keeps
        if keeps:
            self.backbone.eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions of the tasks for (N, 3, H, W), as `Heads.forward` gives them, with one per pixel.

        Where the backbone takes no images of this size, their last column and row are repeated until it does, by at
        most `_MOST_MARGIN` pixels; what is predicted there is left out.

        Raises:
            UsageError: the backbone takes no such images either, or the heads predict fewer pixels.
        """
        height, width = image.shape[-2:]
        fitting = [_fitting_side(type(self.backbone), side) for side in (height, width)]
        try:
            self.backbone.check_size(*fitting)
        except ConfigError as error:
            raise UsageError(
                error.what, where=self.backbone.name, seen=error.seen, expected=error.expected, hint="--height, --width"
            ) from error
        padded = F.pad(image, (0, fitting[1] - width, 0, fitting[0] - height), mode="replicate")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._keeps_backbone):
            features = self.backbone(padded)
        try:
            predicted = self.heads(features, *fitting)
        except ConfigError as error:  # whose words are of a run's settings
            hint = "give another --height and --width; of new heads, --heads light or pyramid fits every backbone"
            raise UsageError(
                error.what, where=self.backbone.name, seen=error.seen, expected=error.expected, hint=hint
            ) from error
        return {task: self._cut(predicted[task], height, width) for task in self._tasks}

    def _cut(self, plane: Tensor, height: int, width: int) -> Tensor:
        if plane.shape[-2] < height or plane.shape[-1] < width:
            raise UsageError(
                "the heads predict fewer pixels than the image has",
                where=self.backbone.name,
                seen=f"{plane.shape[-2]} x {plane.shape[-1]}",
                expected=f"{height} x {width}",
                hint="give another --height and --width",
            )
        return plane[..., :height, :width]


def _fitting_side(kind: type[Backbone], side: int) -> int:
    """The next side from this one on that images may have; this one where none is near."""
    return next((one for one in range(side, side + _MOST_MARGIN + 1) if kind.takes(one, one)), side)


def dense_network(subject: Subject, tasks: Sequence[Task], form: HeadForm, channels: int, seed: int) -> DenseNetwork:
    """A copy of a subject's backbone, with a copy of its heads if these predict all tasks, or else with new ones.

    Args:
        subject: stays as it is.
        tasks: that are wanted.
        form: of new heads.
        channels: of new heads.
        seed: of new heads, which are as torch draws them.

    Returns:
        In evaluation mode, on the device.
    """
    backbone, own = copy.deepcopy(subject.backbone), getattr(subject.networks, "heads", None)
    if isinstance(own, Heads) and set(tasks) <= set(subject.tasks):
        return DenseNetwork(backbone, copy.deepcopy(own), tasks, new_heads="").to(run_device()).eval()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        heads = build_heads(backbone, tasks, channels, shortest_normal=_SHORTEST_NORMAL, form=form)
    words = f"new ({form}, {channels} channels), from the seed {seed}"
    return DenseNetwork(backbone, heads, tasks, new_heads=words).to(run_device()).eval()
