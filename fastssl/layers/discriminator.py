"""Discriminator D: tells, patch by patch, whether features come from a synthetic or a real image."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.backbones import Backbone, scaled_channels
from fastssl.errors import ConfigError


class Discriminator(nn.Module):
    """D for a layer of a backbone. D(z) = sigmoid(logit) = 1 means synthetic.

    Its batch norms keep no running statistics and always use those of the batch they are given. A step passes
    synthetic and real features through D for its own update while the backbone's update passes the synthetic ones
    through it again: running statistics would make these passes depend on each other's order.

    Source: the authors' patch discriminators, without their sigmoid (docs/reproduction.md, sections 3.5 and 4.14);
    which of a backbone's are theirs, the backbone says.

    Args:
        backbone: whose features it looks at.
        layer: of the backbone.
        width: multiplies its channels.
    """

    def __init__(self, backbone: Backbone, layer: str, width: float) -> None:
        super().__init__()
        hidden = backbone.patch_discriminator(layer)
        inputs = backbone.feature_info[layer].channels
        modules: list[nn.Module] = []
        for channels, kernel, stride, padding in hidden:
            outputs = scaled_channels(channels, width)
            modules += [
                nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding),
                nn.BatchNorm2d(outputs, track_running_stats=False),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*modules, nn.Conv2d(inputs, 1, 1))
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
