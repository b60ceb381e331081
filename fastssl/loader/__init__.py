"""DALI graphs and the iterators that hand their batches to torch.

samples = open_mixture({"rooms": 0.7, "kitchens": 0.3})
rank_slice = RankSlice(order=samples.order(seed=0, stream=0), batch_size=224)
settings = ViewSettings(data=config.data, augment=config.augment, stored=samples.image_size)
for batch in load_batches(samples, samples.training_plan(settings, rank_slice), LoaderOptions(...)):
    ...
"""

from fastssl.loader.domain import Domain, DomainRequest, check_input_size, evaluation_domain, training_domains
from fastssl.loader.iterator import Batches, LoaderOptions, Maker, load_batches
from fastssl.loader.load import Loader, load
from fastssl.loader.mixture import Mixture, check_class_numbers, open_domain, open_mixture
from fastssl.loader.plan import Plan, RankSlice, Step, ViewSettings, centre_views, endless_plan, evaluation_plan

__all__ = [
    "Batches",
    "Domain",
    "DomainRequest",
    "Loader",
    "LoaderOptions",
    "Maker",
    "Mixture",
    "Plan",
    "RankSlice",
    "Step",
    "ViewSettings",
    "centre_views",
    "check_class_numbers",
    "check_input_size",
    "endless_plan",
    "evaluation_domain",
    "evaluation_plan",
    "load",
    "load_batches",
    "open_domain",
    "open_mixture",
    "training_domains",
]
