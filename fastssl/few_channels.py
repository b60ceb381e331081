"""Convolutions of few channels, which a GPU computes as others of many channels with the same result.

Its matrix units work on eight channels and more at a time: libraries pad fewer, and change the layout around it. A
stride allows for more: what lies within one stride can be channels, of maps that are as much smaller.

Parameters, their gradients and results are those of torch's own modules, up to the rounding of sums in another order.
Where nothing is gained, which is everywhere but on a GPU with channels last, torch's own code runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOGETHER = 8
"""Channels that matrix units take at a time in half precision."""


class FewInputsConv2d(nn.Conv2d):
    """A convolution with a stride, of few channels, such as an image's: `space_to_depth_convolution` on a GPU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, h, w), as `nn.Conv2d` does."""
        if not _is_faster_rearranged(x):
            return super().forward(x)
        assert not isinstance(self.padding, str)
        return space_to_depth_convolution(x, self.weight, self.bias, self.stride, self.padding)


class FewOutputsConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution to few channels, such as a prediction's: `sub_pixel_convolution` on a GPU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, h, w) to (N, D, H, W), as `nn.ConvTranspose2d` does."""
        if output_size is not None or not _is_faster_rearranged(x):
            return super().forward(x, output_size)
        assert not isinstance(self.padding, str)
        return sub_pixel_convolution(x, self.weight, self.bias, self.stride, self.padding)


def space_to_depth_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`F.conv2d`, computed without a stride on blocks of s x s places, whose s * s * C numbers are channels.

    The kernel is cut into blocks too, and its last ones filled up with zeros: 11 x 11 with a stride of 4 on 3 channels
    become 3 x 3 on 48.

    Source: the space-to-depth transform of the first layer in TensorFlow's ResNet for TPUs, as submitted to MLPerf.

    Args:
        x: (N, C, H, W).
        weight: (D, C, k, k).
        bias: (D,).
        stride: s, of rows and columns.
        padding: p, of rows and columns.

    Returns:
        (N, D, (H + 2p - k) // s + 1, ...), channels last.
    """
    (top, bottom), (left, right) = (
        (pad, step * ((side + 2 * pad - kernel) // step + math.ceil(kernel / step)) - side - pad)
        for side, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    )
    blocks = _space_to_depth(F.pad(x, (left, right, top, bottom)), stride)
    return F.conv2d(blocks, _space_to_depth(_whole_blocks(weight, stride), stride), bias)


def sub_pixel_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`F.conv_transpose2d`, computed as a convolution of the small map, whose channels are blocks of s x s places.

    Row s q + u of the result is the sum of the rows q - j of x, each by row s j + u of the kernel: an ordinary
    convolution for each u. 3 x 3 with a stride of 2 become 2 x 2 and four times the channels. These are filled up to a
    multiple of eight with ones that are zero, and left out of the result.

    Source: Shi et al., CVPR 2016, and *Is the deconvolution layer the same as a convolutional layer?*, 2016.

    Args:
        x: (N, C, h, w).
        weight: (C, D, k, k), as transposed convolutions have it.
        bias: (D,).
        stride: s, of rows and columns.
        padding: p, of rows and columns.

    Returns:
        (N, D, s (h - 1) + k - 2p, ...), channels last.
    """
    (rows, columns), block = stride, math.prod(stride)
    more = -weight.shape[1] % (_TOGETHER // math.gcd(_TOGETHER, block))
    taps = _whole_blocks(weight, stride, more).unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).flip(2, 4)
    taps = taps.permute(1, 3, 5, 2, 4, 0).flatten(0, 2).permute(0, 3, 1, 2)  # (D s s, C, k / s, k / s), channels last
    if bias is not None:
        bias = F.pad(bias, (0, more)).unsqueeze(1).expand(-1, block).flatten()
    small = F.conv2d(x, taps, bias, padding=(taps.shape[2] - 1, taps.shape[3] - 1))
    # Channels stay the last dimension, also in the gradient: one copy to the large map, and one back.
    blocks = small.permute(0, 2, 3, 1).unflatten(3, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3)
    whole = blocks.reshape(len(x), rows * small.shape[2], columns * small.shape[3], -1).permute(0, 3, 1, 2)
    height, width = (
        step * (side - 1) + kernel - 2 * pad
        for side, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    )
    top, left = padding
    right, bottom = left + width - whole.shape[3], top + height - whole.shape[2]
    return F.pad(whole, (-left, right, -top, bottom, 0, -more))  # slices would fill a map each for the gradient


def _is_faster_rearranged(x: Tensor) -> bool:
    return x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)


def _whole_blocks(weight: Tensor, stride: Sequence[int], more: int = 0) -> Tensor:
    """A kernel with zeros below and on the right, up to a multiple of the stride, and more of its second channels."""
    rows, columns = stride
    return F.pad(weight, (0, -weight.shape[3] % columns, 0, -weight.shape[2] % rows, 0, more))


def _space_to_depth(x: Tensor, block: Sequence[int]) -> Tensor:
    """(N, C, s h, s w) to (N, s * s * C, h, w), channels last; the channels of a place stay side by side."""
    rows, columns = block
    blocks: Tensor = x.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).permute(0, 3, 1, 2)
