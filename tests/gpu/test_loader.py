"""The GPU graph's batches against the CPU graph's: targets exactly, images as far as two JPEG decoders agree."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from graph_forms import FORMS, SIZE, assert_form_beside_the_cpu
from patterns import SIDE, CodedSource

from fastssl.batch import Batch
from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import (
    LoaderOptions,
    Maker,
    RankSlice,
    ViewSettings,
    endless_plan,
    load,
    load_batches,
    open_mixture,
)
from fastssl.shards import pack


@pytest.mark.parametrize("load_on", ["cpu", "gpu"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_batches_equal_those_of_the_cpu(
    coded_synthetic: Path, coded_real: Path, gpu: torch.device, form: str, half: bool, load_on: Maker
) -> None:
    path = coded_real if FORMS[form].whole_photos else coded_synthetic
    assert_form_beside_the_cpu(FORMS[form], path, gpu, half=half, load_on=load_on)


@pytest.mark.parametrize("form", ["cut", "cut, gray", "resized, colours and blur", "evaluation"])
def test_images_that_are_no_jpegs_equal_those_of_the_cpu(coded_pixels: Path, gpu: torch.device, form: str) -> None:
    assert_form_beside_the_cpu(FORMS[form], coded_pixels, gpu, half=False, load_on="gpu")


@pytest.mark.parametrize("load_on", ["cpu", "gpu"])
def test_a_gpu_without_a_number_is_the_current_one(coded_synthetic: Path, gpu: torch.device, load_on: Maker) -> None:
    seen: list[Batch] = []
    for device in ("cuda", gpu):
        with load(coded_synthetic, batch_size=4, size=SIZE, device=device, load_on=load_on) as batches:
            seen.append(next(batches))
            assert seen[-1].image.device == gpu
    assert torch.equal(seen[0].image, seen[1].image)


def test_raw_targets_give_the_same_batches(coded_synthetic: Path, tmp_path: Path, gpu: torch.device) -> None:
    """Blocks that were not compressed are not inflated."""
    packing: dict[str, object] = {"size": SIDE, "samples_per_shard": 4, "jpeg_quality": 98}
    pack(CodedSource(11, "synthetic"), tmp_path / "raw", target_codec="raw", **packing)
    made = []
    for path in (coded_synthetic, tmp_path / "raw"):
        shards = open_mixture(path)
        rank_slice = RankSlice(order=shards.order(seed=5, stream=0), batch_size=4)
        settings = ViewSettings(data=DataConfig(size=SIZE), augment=AugmentConfig(), stored=shards.image_size)
        options = LoaderOptions(device=gpu, load_on="gpu", threads=2)
        made.append(list(islice(load_batches(shards, endless_plan(settings, rank_slice), options), 6)))
    for lz4, raw in zip(*made, strict=True):
        assert lz4.keys == raw.keys
        for plane in ("image", "depth", "normal", "edge", "valid", "stored_edge_fraction"):
            assert torch.equal(getattr(lz4, plane), getattr(raw, plane))
