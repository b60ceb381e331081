"""DALI graphs and the iterators that hand their batches to torch.

samples = open_mixture({"rooms": 0.7, "kitchens": 0.3})
share = Share(order=samples.order(seed=0, stream=0), batch_size=224)
settings = ViewSettings(data=config.data, augment=config.augment, stored=samples.image_size)
for batch in synthetic_batches(samples, training_plan(settings, share), LoaderOptions(...)):
    ...
"""

from fastssl.loader.iterator import Batches, LoaderOptions, real_batches, synthetic_batches
from fastssl.loader.mixture import Mixture, open_domain, open_mixture
from fastssl.loader.plan import Plan, Share, Step, ViewSettings, centre_views, evaluation_plan, training_plan

__all__ = [
    "Batches",
    "LoaderOptions",
    "Mixture",
    "Plan",
    "Share",
    "Step",
    "ViewSettings",
    "centre_views",
    "evaluation_plan",
    "open_domain",
    "open_mixture",
    "real_batches",
    "synthetic_batches",
    "training_plan",
]
