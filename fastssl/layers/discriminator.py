"""Discriminator D: tells, patch by patch, whether features come from a synthetic or a real image."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastssl.backbones import Backbone, scaled_channels
from fastssl.errors import ConfigError

DiscriminatorNorm = Literal["per_domain", "joint", "none", "instance", "spectral"]
"""How D normalises: batch norm of each pass by itself, whether a pass has one domain or both; nothing; each image by
itself; or its weights, each convolution's by its largest singular value."""


class Discriminator(nn.Module):
    """D for a layer of a backbone. D(z) = sigmoid(logit) = 1 means synthetic.

    Its norms keep no running statistics and always use those of the batch they are given. A step passes
    synthetic and real features through D for its own update while the backbone's update passes the synthetic ones
    through it again: running statistics would make these passes depend on each other's order. With `spectral` each pass
    in training mode makes one more power iteration, so a pass that is to leave no trace is given copies of the buffers.

    Source: the authors' patch discriminators, without their sigmoid (docs/reproduction.md, sections 3.5 and 4.14);
    which of a backbone's are theirs, the backbone says. Their norm is `per_domain`; the others are ours
    (docs/reproduction.md, section 7.1).

    Args:
        backbone: whose features it looks at.
        layer: of the backbone.
        width: multiplies its channels.
        norm: of its convolutions, which have the same names and biases with each.
    """

    def __init__(self, backbone: Backbone, layer: str, width: float, norm: DiscriminatorNorm = "per_domain") -> None:
        super().__init__()
        hidden = backbone.patch_discriminator(layer)
        inputs = backbone.feature_info[layer].channels
        modules: list[nn.Module] = []
        for channels, kernel, stride, padding in hidden:
            outputs = scaled_channels(channels, width)
            modules += [
                nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding),
                _norm(norm, outputs),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*modules, nn.Conv2d(inputs, 1, 1))
        if norm == "spectral":
            for convolution in self.layers[::3]:
                _normalise_spectrally(convolution)
        self._smallest_side = 1
        for _, kernel, stride, padding in reversed(hidden):
            self._smallest_side = max(1, (self._smallest_side - 1) * stride + kernel - 2 * padding)

    def forward(self, features: Tensor) -> Tensor:
        """Logits, (N, 1, h, w): one per patch.

        Args:
            features: the adapted layer's map, (N, C, H, W).

        Raises:
            ConfigError: a map so small that no patch is left, which is so for images below 67 pixels.
        """
        if min(features.shape[-2:]) < self._smallest_side:
            raise ConfigError(
                "the discriminator's input is too small to leave a single decision",
                where="data.size",
                seen="a map of {} x {}".format(*features.shape[-2:]),
                expected=f"a map of at least {self._smallest_side} x {self._smallest_side}",
                hint="use images of at least 67 pixels, or set model.adapted_layer to none",
            )
        logits: Tensor = self.layers(features)
        return logits


def _norm(norm: DiscriminatorNorm, channels: int) -> nn.Module:
    """What stands between a convolution and its activation."""
    if norm in ("per_domain", "joint"):
        return nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.InstanceNorm2d(channels, affine=True) if norm == "instance" else nn.Identity()


def _normalise_spectrally(convolution: nn.Module) -> None:
    """Divide the weights by their largest singular value from now on.

    Source: Miyato et al., *Spectral Normalization for Generative Adversarial Networks*, ICLR 2018.
    """
    spectral_norm(convolution)
    parametrizations = convolution.get_submodule("parametrizations.weight")
    assert isinstance(parametrizations, nn.ModuleList)
    parametrizations[0] = _InFullPrecision(parametrizations[0])


class _InFullPrecision(nn.Module):
    """A parametrization that mixed precision leaves alone: rounded vectors would give it another singular value."""

    def __init__(self, parametrization: nn.Module) -> None:
        super().__init__()
        self.parametrization = parametrization

    def forward(self, weight: Tensor) -> Tensor:
        device = weight.device.type
        has_precision = torch.amp.is_autocast_available(device)  # not where tensors have no content
        with torch.autocast(device, enabled=False) if has_precision else nullcontext():
            normalised: Tensor = self.parametrization(weight)
        return normalised
