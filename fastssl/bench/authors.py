"""The step in the authors' order of work, which `fastssl.bench.step` compares with ours.

What is learnt is the same, from the same networks, losses and optimizers. What differs is the work: heads are passed
twice and the discriminator five times, photos go through the whole network and leave a graph behind, and the pools
lie on the host (docs/reproduction.md, section 4.14).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from fastssl.batch import Batch
from fastssl.losses import adversarial_loss, discriminator_loss
from fastssl.methods import StepContext
from fastssl.methods.cross_domain import CrossDomain, CrossDomainConfig, as_constant, decisions, task_losses


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
        self._config, self._context, self._norm = config, context, config.model.discriminator_norm

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Update D, then B and H; as `CrossDomain.__call__`."""
        networks, context, weights = self.method.networks, self._context, self._config.loss
        backbone, heads, discriminator = networks.backbone, networks.heads, networks.discriminator
        assert discriminator is not None
        assert self.method.discriminator_optimizer is not None
        synthetic, layer, norm = batches["synthetic"], self._config.model.adapted_layer, self._norm

        with context.precision():  # all networks first, whose predictions and decisions nobody looks at
            if networks.joint_pass is not None:
                features, z_y = networks.joint_pass(synthetic.image, batches["real"].image)
            else:
                features, z_y = backbone(synthetic.image), backbone(batches["real"].image)[layer]
            z_x = features[layer]
            heads(features, *synthetic.image.shape[-2:])
            copies = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
            decisions(partial(functional_call, discriminator, copies), z_x, z_y, norm)

        pooled_x = self.method.synthetic_pool.mix(z_x.detach().cpu()).to(z_x.device)
        pooled_y = self.method.real_pool.mix(z_y.detach().cpu()).to(z_y.device)
        with context.precision():
            d_x, d_y = decisions(discriminator, pooled_x, pooled_y, norm)
        own = weights.discriminator_weight * discriminator_loss(d_x, d_y)
        context.backward(own)
        context.update(self.method.discriminator_optimizer)

        frozen = as_constant(discriminator)
        with context.precision():
            predictions = heads(features, *synthetic.image.shape[-2:])
            judged = self.method.judged_of_pushed(frozen, z_x, z_y)
        objective = task_losses(predictions, synthetic, weights)
        objective["adversarial"] = self.method.adversarial_weight * adversarial_loss(*judged)
        context.backward(torch.stack(list(objective.values())).sum())
        context.update(self.method.task_optimizer)
        context.finish()
        return {name: loss.detach() for name, loss in (objective | {"discriminator": own}).items()}
