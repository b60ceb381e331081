"""DALI graphs and the iterators that hand their batches to torch.

shards = ShardSet("rooms")
share = Share(num_samples=len(shards), batch_size=224, seed=0, stream=SYNTHETIC)
plan = training_plan(config.data, share, shards.image_size, whole=False, first_step=0)
for batch in synthetic_batches(shards, plan, LoaderOptions(...)):
    ...
"""

from fastssl.loader.iterator import LoaderOptions, real_batches, synthetic_batches
from fastssl.loader.plan import Share, Step, centre_views, evaluation_plan, training_plan

__all__ = [
    "LoaderOptions",
    "Share",
    "Step",
    "centre_views",
    "evaluation_plan",
    "real_batches",
    "synthetic_batches",
    "training_plan",
]
