"""The GPU graph's batches against the CPU graph's: labels exactly, images within the tolerance of two JPEG decoders."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from patterns import SIDE, CodedSource

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import LoaderOptions, Share, ViewSettings, open_mixture, synthetic_batches, training_plan
from fastssl.shards import pack

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


def test_raw_label_planes_give_the_same_batches(coded_synthetic: Path, tmp_path: Path, gpu: torch.device) -> None:
    """Blocks that were not compressed are not inflated."""
    packing: dict[str, object] = {"size": SIDE, "samples_per_shard": 4, "jpeg_quality": 98}
    pack(CodedSource(11, "synthetic"), tmp_path / "raw", label_codec="raw", **packing)
    made = []
    for path in (coded_synthetic, tmp_path / "raw"):
        shards = open_mixture(path)
        share = Share(order=shards.order(seed=5, stream=0), batch_size=4)
        settings = ViewSettings(data=DataConfig(size=SIZE), augment=AugmentConfig(), stored=shards.image_size)
        options = LoaderOptions(device=gpu, threads=2)
        made.append(list(islice(synthetic_batches(shards, training_plan(settings, share), options), 6)))
    for lz4, raw in zip(*made, strict=True):
        assert lz4.keys == raw.keys
        for plane in ("image", "depth", "normal", "edge", "valid", "stored_edge_fraction"):
            assert torch.equal(getattr(lz4, plane), getattr(raw, plane))
