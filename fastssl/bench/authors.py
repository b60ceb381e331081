"""The step in the authors' order of work, which `fastssl.bench.step` compares with ours.

What is learnt is the same, from the same networks, losses and optimizers. What differs is the work: heads are passed
twice and the discriminator five times, photos go through the whole network and leave a graph behind, and the pools
lie on the host (docs/reproduction.md, section 4.14).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastssl.batch import Batch
from fastssl.losses import adversarial_loss, discriminator_loss
from fastssl.methods import StepContext
from fastssl.methods.cross_domain import CrossDomain, CrossDomainConfig, task_losses


class AuthorsStep:
    """One step of `cross_domain`, done as the authors' code does it.

    Args:
        config: with an adapted layer.
        context: on one rank.
    """

    def __init__(self, config: CrossDomainConfig, context: StepContext) -> None:
        # The second passes are made here, and not stood for by the momentum of statistics.
        once = config.model.model_copy(update={"running_statistics": "adapted"})
        self.method = CrossDomain(config.model_copy(update={"model": once}), context)
        self._config, self._context = config, context

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Update D, then B and H; as `CrossDomain.__call__`."""
        networks, context, weights = self.method.networks, self._context, self._config.loss
        backbone, heads, discriminator = networks.backbone, networks.heads, networks.discriminator
        assert discriminator is not None
        assert self.method.discriminator_optimizer is not None
        synthetic, layer = batches["synthetic"], self._config.model.adapted_layer

        with context.precision():  # all networks first, whose predictions and decisions nobody looks at
            features = backbone(synthetic.image)
            z_x, z_y = features[layer], backbone(batches["real"].image)[layer]
            heads(features, *synthetic.image.shape[-2:])
            discriminator(z_y), discriminator(z_x)

        pooled_x = self.method.synthetic_pool.mix(z_x.detach().cpu()).to(z_x.device)
        pooled_y = self.method.real_pool.mix(z_y.detach().cpu()).to(z_y.device)
        with context.precision():
            d_x, d_y = discriminator(pooled_x), discriminator(pooled_y)
        own = weights.discriminator_weight * discriminator_loss(d_x, d_y)
        context.backward(own)
        context.update(self.method.discriminator_optimizer)

        discriminator.requires_grad_(False)
        with context.precision():
            predictions, adversarial = heads(features, *synthetic.image.shape[-2:]), discriminator(z_x)
        discriminator.requires_grad_(True)
        objective = task_losses(predictions, synthetic, weights)
        objective["adversarial"] = weights.adversarial_weight * adversarial_loss(adversarial)
        context.backward(torch.stack(list(objective.values())).sum())
        context.update(self.method.task_optimizer)
        context.finish()
        return {name: loss.detach() for name, loss in (objective | {"discriminator": own}).items()}
