"""The forms that the loader's graph takes, each beside the CPU's usual way: for the tests on the CPU and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from late_reading import Batch
from patterns import SIDE

from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import (
    LoaderOptions,
    Maker,
    RankSlice,
    ViewSettings,
    endless_plan,
    evaluation_plan,
    load_batches,
    open_mixture,
)

SIZE, BATCH, STEPS = 67, 4, 6
# nvJPEG's inverse transform and chroma upsampling round differently from libjpeg's: a few of 255 levels at most pixels.
WORST, MEAN = 12 / 255, 1 / 255


@dataclass(frozen=True, kw_only=True)
class Form:
    """How batches are seen; by default through random windows that are cut out, in colour, half of them mirrored."""

    data: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    evaluates: bool = False
    """Each sample once, through its centre window."""
    whole_photos: bool = False
    """Images without their targets, whole instead of through a window."""
    contrast: float = 1.0
    """By how much differences between images grow."""


RESIZED = {"window": (0.5, 1.0)}
COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 20}
FORMS = {
    "cut": Form(),
    "cut, all mirrored": Form(data={"flip": 1.0}),
    "cut, gray": Form(data={"gray": "per_sample"}),
    "cut, colours": Form(augment=COLOURS, contrast=2),
    "cut, blur": Form(augment={"blur": 0.7}),
    "cut, gray, colours and blur": Form(data={"gray": "per_sample"}, augment={**COLOURS, "blur": 0.7}, contrast=2),
    "resized": Form(data=RESIZED),
    "resized, gray": Form(data={**RESIZED, "gray": "per_batch"}),
    "resized, colours and blur": Form(data=RESIZED, augment={**COLOURS, "blur": 0.7}, contrast=2),
    "aspect": Form(augment={"aspect": (0.7, 1.4)}),
    "nearest normals": Form(data={**RESIZED, "normal_filter": "nearest"}),
    "contours by area": Form(data={**RESIZED, "edge_filter": "area"}),
    "evaluation": Form(data=RESIZED, evaluates=True),
    "evaluation, cut": Form(evaluates=True),
    "whole photos": Form(whole_photos=True),
    "whole photos, evaluation": Form(whole_photos=True, evaluates=True),
}


def batches_of(form: Form, path: Path, device: torch.device, *, half: bool, load_on: Maker = "cpu") -> list[Batch]:
    """The same ones whatever the device and the type of the images."""
    samples = open_mixture(path)
    data = DataConfig.model_validate({"size": SIZE, "window": (SIZE / SIDE, SIZE / SIDE), "gray": "off", **form.data})
    augment = AugmentConfig.model_validate(form.augment)
    settings = ViewSettings(data=data, augment=augment, stored=samples.image_size, whole=form.whole_photos)
    if form.evaluates:
        plan = evaluation_plan(settings, len(samples), BATCH)
    else:
        plan = endless_plan(settings, RankSlice(order=samples.order(seed=5, stream=0), batch_size=BATCH))
    options = LoaderOptions(device=device, load_on=load_on, threads=2, half=half)
    made = load_batches(samples, plan, options, ("class_index",) if form.whole_photos else None)
    return list(islice(made, STEPS))


def assert_form_beside_the_cpu(
    form: Form, path: Path, device: torch.device, *, half: bool, load_on: Maker = "cpu"
) -> None:
    """Batches on this device against the CPU's of full precision: targets exactly, images within a tolerance.

    Those that the CPU makes for a GPU are the same to the last bit, rounded to half precision where that is wanted.
    """
    expected = batches_of(form, path, torch.device("cpu"), half=False)
    got = batches_of(form, path, device, half=half, load_on=load_on)
    is_exact = device.type == "cuda" and load_on == "cpu"
    sizes = [len(batch.keys) for batch in got]
    assert sizes == ([BATCH] * (len(open_mixture(path)) // BATCH) + [sizes[-1]] if form.evaluates else [BATCH] * STEPS)
    assert (sizes[-1] < BATCH) == form.evaluates
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys == theirs.keys
        assert ours.image.dtype == (torch.float16 if half else torch.float32)
        assert ours.image.is_contiguous(memory_format=torch.channels_last)
        if is_exact:
            assert torch.equal(ours.image.cpu(), theirs.image.to(ours.image.dtype))
        error = (ours.image.float().cpu() - theirs.image).abs()
        assert error.max() < form.contrast * WORST
        assert error.mean() < form.contrast * MEAN
        assert torch.equal(ours.class_index.cpu(), theirs.class_index)
        if not form.whole_photos:
            assert_targets_equal(ours, theirs)
            assert torch.equal(ours.normal.cpu(), theirs.normal) or not is_exact


def assert_targets_equal(got: Batch, expected: Batch) -> None:
    for plane in ("depth", "edge", "valid"):
        assert torch.equal(getattr(got, plane).cpu(), getattr(expected, plane)), plane
    torch.testing.assert_close(got.normal.cpu(), expected.normal, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.stored_edge_fraction.cpu(), expected.stored_edge_fraction)
