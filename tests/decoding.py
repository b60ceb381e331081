"""Decoded images beside libjpeg's, and read while a network trains: for the tests on the CPU and on a GPU."""

from __future__ import annotations

import io
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from late_reading import Batch, begin
from numpy.typing import NDArray
from PIL import Image
from small_steps import batches, method, small_config
from torch import Tensor

from fastssl.loader import LoaderOptions, open_mixture
from fastssl.loader.calibration import changed_images
from fastssl.loader.graph import build_decoder, built, device_number
from fastssl.shards import JPEG

SAMPLE = Path(__file__).parents[1] / "shards" / "sample" / "render_train"
COUNT = 24
WORST, MEAN = 12, 1
"""Levels of 8 bits by which two JPEG decoders may differ."""


def streams() -> list[NDArray[np.uint8]]:
    dataset = open_mixture(str(SAMPLE)).datasets[0]
    return [dataset.member(index, JPEG).copy() for index in range(COUNT)]


def decoded(device: torch.device, fraction: float) -> NDArray[np.int16]:
    """The first images of the sample shards, this fraction of them by the JPEG engine: (COUNT, H, W, 3)."""
    encoded = streams()
    pipeline = build_decoder(
        lambda: encoded, batch_size=COUNT, threads=2, device_id=device_number(device), hw_decoder_load=fraction
    )
    (images,) = built(pipeline).run()
    array: NDArray[np.uint8] = (images.as_cpu() if device.type == "cuda" else images).as_array()
    return array.astype(np.int16)


def photos(device: torch.device, fraction: float) -> Iterator[Tensor]:
    """Endless batches of images of the sample shards, this fraction of them by the JPEG engine."""
    options = LoaderOptions(device=device, load_on="gpu", half=device.type == "cuda", hw_decoder_load=fraction)
    return map(attrgetter("image"), begin(SAMPLE, options, targets=False, batch_size=64))


def assert_near_libjpeg(device: torch.device, fraction: float) -> None:
    """Every image for itself, so that one in another's place is found."""
    expected = np.stack([np.array(Image.open(io.BytesIO(stream.tobytes()))) for stream in streams()])
    off = np.abs(decoded(device, fraction) - expected)
    assert off.max() <= WORST
    assert off.mean(axis=(1, 2, 3)).max() < MEAN


def changed_beside_steps(path: Path, device: torch.device, fraction: float) -> int:
    """Images that change where a training step is enqueued between a batch and its use."""
    settings = small_config("train.amp=true")
    step, made = method(settings, device), batches(0, device)
    options = LoaderOptions(device=device, load_on="gpu", threads=2, half=True, hw_decoder_load=fraction)

    def stepped(batch: Batch) -> Tensor:
        step(made)
        return batch.image

    # `map` keeps nothing of a batch that it gave away.
    return changed_images(lambda: map(stepped, begin(path, options, targets=False)), device)


def changed_at_leisure(path: Path, device: torch.device, fraction: float) -> int:
    """Images that the calibration finds changed."""
    options = LoaderOptions(device=device, load_on="gpu", threads=2, half=True, hw_decoder_load=fraction)
    return changed_images(lambda: map(attrgetter("image"), begin(path, options, targets=False)), device)
