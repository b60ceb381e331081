"""The GPU's way of cutting label planes, run on the CPU, against the threaded way; each is the other's oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader.labels import ThreadedLabels, cut_on_device
from fastssl.loader.order import mixed_order
from fastssl.loader.plan import Share, ViewSettings, training_views
from fastssl.shards import LABELS, LabelLayout, ShardSet, inflate


@pytest.mark.parametrize("window", [(0.5, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("size", [67, 99])
def test_device_and_threads_cut_the_same_planes(coded_synthetic: Path, window: tuple[float, float], size: int) -> None:
    shards = ShardSet(coded_synthetic)
    layout = LabelLayout(*shards.image_size)
    num = len(shards)
    blocks = [shards.member(i, LABELS) for i in range(num)]
    raw = np.empty((num, layout.num_bytes), np.uint8)
    for block, inflated in zip(blocks, raw, strict=True):
        inflate(block, layout, inflated)
    threads = ThreadedLabels(layout, size, threads=3)
    share = Share(order=mixed_order([[num]], [1], seed=1, stream=0), batch_size=num)
    settings = ViewSettings(
        data=DataConfig(size=size, window=window), augment=AugmentConfig(), stored=shards.image_size
    )
    for step in range(3):
        views = training_views(settings, share, step * num)
        expected = threads.submit(blocks, views).result()
        planes = cut_on_device(torch.from_numpy(raw), layout, views, size)
        assert torch.equal(planes.depth, expected.depth.to(torch.int32))
        assert torch.equal(planes.normal, expected.normal)
        assert torch.equal(planes.edge, expected.edge)
        assert torch.allclose(planes.edge_fraction, expected.edge_fraction)
    threads.close()
