"""The GPU graph's batches against the CPU graph's: labels exactly, images within the tolerance of two JPEG decoders."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, Share, ViewSettings, open_mixture, synthetic_batches, training_plan

SIZE = 67
# nvJPEG's inverse transform and chroma upsampling round differently from libjpeg's: a few of 255 levels at most pixels.
WORST, MEAN = 12 / 255, 1 / 255


@pytest.mark.parametrize("gray", ["per_sample", "off"])
@pytest.mark.parametrize("half", [False, True])
def test_batches_equal_those_of_the_cpu(coded_synthetic: Path, gpu: torch.device, gray: str, half: bool) -> None:
    shards = open_mixture(coded_synthetic)
    data = DataConfig.model_validate({"size": SIZE, "window": (0.5, 1.0), "gray": gray})

    def run(device: torch.device) -> list[object]:
        share = Share(order=shards.order(seed=5, stream=0), batch_size=4)
        plan = training_plan(ViewSettings(data=data, augment=AugmentConfig(), stored=shards.image_size), share)
        on_gpu = device.type == "cuda"
        options = LoaderOptions(device=device, threads=2, half=half and on_gpu)
        return list(islice(synthetic_batches(shards, plan, options), 9))

    for expected, got in zip(run(torch.device("cpu")), run(gpu), strict=True):
        assert got.keys == expected.keys
        assert got.image.dtype == (torch.float16 if half else torch.float32)
        assert got.image.is_contiguous(memory_format=torch.channels_last)
        error = (got.image.float().cpu() - expected.image).abs()
        assert error.max() < WORST
        assert error.mean() < MEAN
        for plane in ("depth", "edge", "valid"):
            assert torch.equal(getattr(got, plane).cpu(), getattr(expected, plane))
        torch.testing.assert_close(got.normal.cpu(), expected.normal, rtol=0, atol=1e-6)
        torch.testing.assert_close(got.stored_edge_fraction.cpu(), expected.stored_edge_fraction)
