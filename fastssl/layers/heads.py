"""Heads H: one per task, from the backbone's last features to one prediction per input pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.batch import Task

_OUTPUTS: dict[Task, int] = {"depth": 1, "normal": 3, "edge": 1}


class Heads(nn.Module):
    """H, with no weights shared between the tasks.

    Source: the authors' heads (docs/reproduction.md, section 3.4). Four transposed convolutions without padding lead
    from 13 to 27, 55, 113 and 227 pixels, and from k - 1 to 16 k + 3 at any other size. 7.5 M parameters for three
    tasks.

    Args:
        inputs: channels of the features.
        tasks: one head each.
        channels: inside each head.
        shortest_normal: a raw normal that is shorter is divided by this, and not by its own length.
    """

    def __init__(self, inputs: int, tasks: Sequence[Task], channels: int, *, shortest_normal: float) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({task: _head(inputs, channels, _OUTPUTS[task]) for task in tasks})
        self._shortest_normal = shortest_normal

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Predictions, by task.

        Args:
            features: the backbone's last, (N, C, k - 1, k - 1) for an input of S = 16 k + 3 pixels.

        Returns:
            depth: (N, 1, S, S), logarithm of metres. normal: (N, 3, S, S) float32, unit vectors in the camera frame
            (the zero vector where a head that is not trained yet has no opinion).
            edge: (N, 1, S, S), logits of a contour passing through the pixel.
        """
        predictions = {task: head(features) for task, head in self.heads.items()}
        if "normal" in predictions:  # in float32: half floats are off by too much for an angle
            predictions["normal"] = F.normalize(predictions["normal"].float(), dim=1, eps=self._shortest_normal)
        return predictions


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *_upsampling(inputs, hidden, kernel=3),
        *_upsampling(hidden, hidden, kernel=3),
        *_upsampling(hidden, hidden, kernel=5),
        nn.ConvTranspose2d(hidden, outputs, 3, stride=2),
    )


def _upsampling(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    convolution = nn.ConvTranspose2d(inputs, outputs, kernel, stride=2)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
