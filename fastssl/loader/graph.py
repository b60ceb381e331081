"""The DALI graph of a domain: encoded images in, normalised ones (and inflated target blocks) out.

One function builds it for the CPU and for a GPU. Every random choice is an input, made in
`fastssl.loader.plan`, so the graph itself has no state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from fastssl.batch import IMAGE_MEAN
from fastssl.errors import DeviceError
from fastssl.faults import machine_error, machine_fault
from fastssl.loader.plan import Views
from fastssl.shards.codec import TargetCodec

Input = list[NDArray[np.uint8]] | NDArray[Any]
"""One input of the graph for a batch: encoded bytes of each sample, or numbers or pixels with a row per sample."""
Inputs = Callable[[], tuple[Input, ...]]
"""A function that gives the inputs of the next batch; raises StopIteration at the end."""

FAULTS = (RuntimeError, MemoryError)
"""Errors that DALI raises; the second where a GPU's memory or the machine's is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Target blocks that a GPU inflates."""

    num_bytes: int
    """Size of each, inflated."""
    codec: TargetCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The work of a graph on decoded images; a step that is not asked for costs nothing."""

    size: int
    """Side of the output in pixels."""
    cuts: bool
    """Every window has the size of the output, so it is cut out and nothing is resampled."""
    gray: bool
    """Repeat each view's channel three times instead of the colours."""
    colour: bool
    """Change brightness, contrast, saturation and hue as the views say."""
    blur: bool
    """Blur as the views say."""
    half: bool
    """float16 instead of float32."""
    encoded: bool = True
    """The graph decodes the images, and cuts them; else they come as pixels, cut already where they are only cut."""

    def inputs(self, views: Views) -> list[NDArray[Any]]:
        """The graph's inputs besides the images, in their order."""
        arrays: list[NDArray[Any]] = []
        if not self.cuts:
            arrays += views.roi()
        elif self.encoded:
            arrays.append(np.stack([views.top, views.left], axis=1).astype(np.int32))
        if self.cuts:
            arrays.append(views.flip.astype(np.int32))
        if self.colour:
            arrays += list(np.ascontiguousarray(views.colour.T))
        if self.blur:
            # A kernel this narrow leaves every pixel as it is.
            arrays.append(np.maximum(views.blur, _NO_BLUR))
        if self.gray:
            arrays += [views.channel[:, None].astype(np.int32), 255.0 * IMAGE_MEAN[views.channel][:, None]]
        return arrays

    @property
    def num_inputs(self) -> int:
        """Number of `inputs`."""
        windows = int(self.encoded) if self.cuts else 2
        return windows + self.cuts + 4 * self.colour + self.blur + 2 * self.gray


_NO_BLUR = np.float32(0.01)


def build_graph(
    feed: Inputs,
    pixels: Pixels,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None = None,
    hw_decoder_load: float = 0.0,
    prefetch: int = 2,
    blocks: Blocks | None = None,
) -> Pipeline:
    """Build the pipeline of one domain.

    Args:
        feed: called once per batch, ahead of need; returns the batch's JPEG streams (a list of uint8 arrays), or pixels
            (N, h, w, 3) where the images do not come encoded, then `Pixels.inputs`, and with `blocks` the target
            blocks, a list of uint8 arrays.
        batch_size: largest N.
        threads: decoding threads.
        device_id: GPU that decodes and augments; None = the CPU.
        hw_decoder_load: fraction of the images that a GPU's JPEG engine decodes.
        prefetch: batches that are made ahead of need.
        blocks: the target blocks that a GPU inflates; None where there are none, or the CPU does it.

    Returns:
        A pipeline whose outputs are the images, (N, size, size, 3), and with `blocks` the inflated ones, (N, bytes)
        uint8.
    """
    on_gpu = device_id is not None
    num_inputs = 1 + pixels.num_inputs
    pipeline = Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch)
    with pipeline:
        image, *views = fn.external_source(source=feed, num_outputs=num_inputs + (blocks is not None), batch=True)
        if not pixels.encoded:
            image = fn.reinterpret(image.gpu() if on_gpu else image, layout="HWC")
        elif pixels.cuts:
            start, *views = views
            image = _decoded_window(image, start, pixels.size, on_gpu=on_gpu, hw_decoder_load=hw_decoder_load)
        else:
            image = _decoded(image, on_gpu=on_gpu, hw_decoder_load=hw_decoder_load)
        outputs = [_image(image, pixels, views)]
        if blocks is not None:
            outputs.append(_inflated(views[-1].gpu(), blocks))
        pipeline.set_outputs(*outputs)
    return pipeline


def built(pipeline: Pipeline) -> Pipeline:
    """The pipeline, ready to run.

    The first one on a GPU warns where cuFFT and NPP are missing, which no graph here uses: DALI needs them for
    spectrograms, debayering and remapping alone.

    Raises:
        DeviceError: DALI cannot build it; a MachineError where memory is short.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="nvidia-dali-cuda120 is no longer shipped")
        try:
            pipeline.build()
        except FAULTS as error:
            raise dali_error("DALI could not begin to load", error) from error
    return pipeline


def dali_error(what: str, error: Exception) -> DeviceError:
    """The error that tells of one of `FAULTS`."""
    if machine_fault(error) is not None:
        return machine_error(error, what)
    return DeviceError(what, seen=str(error))


def device_number(device: torch.device) -> int | None:
    """Number of a GPU as DALI wants it, that of torch's current one where the device names none; None for the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _inflated(block: DataNode, blocks: Blocks) -> DataNode:
    if blocks.codec != "lz4":
        return block
    return fn.decoders.inflate(block, shape=[blocks.num_bytes], dtype=types.UINT8)


def build_decoder(
    feed: Callable[[], list[Any]],
    *,
    batch_size: int,
    threads: int,
    device_id: int | None = None,
    hw_decoder_load: float = 0.0,
) -> Pipeline:
    """Build a pipeline that decodes as `build_graph` does, and does nothing else: what that takes by itself.

    Args:
        feed: called once per batch; returns its JPEG streams, a list of uint8 arrays.

    Returns:
        A pipeline whose output is the images, (H, W, 3) uint8 each.
    """
    pipeline = Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    with pipeline:
        jpeg = fn.external_source(source=feed, batch=True)
        pipeline.set_outputs(_decoded(jpeg, on_gpu=device_id is not None, hw_decoder_load=hw_decoder_load))
    return pipeline


@contextmanager
def decoder_kept(device: torch.device) -> Iterator[None]:
    """Keep a GPU's decoder, so that others, which come and go meanwhile, begin in a third of the time.

    With the last decoder of a process goes what all of them share. On an H200 one begins in 1.7 s where there is no
    other, and in 0.55 s where there is (benchmarks/LOG.md).
    """

    def no_jpegs() -> list[Any]:  # and not `list`: behind a class, DALI looks for a function without end
        return []

    kept = built(build_decoder(no_jpegs, batch_size=1, threads=1, device_id=device_number(device)))
    yield
    del kept


def _decoded(jpeg: DataNode, *, on_gpu: bool, hw_decoder_load: float) -> DataNode:
    return fn.decoders.image(
        jpeg,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        # What libjpeg does on the CPU; without it the chroma of the two backends differs.
        jpeg_fancy_upsampling=True,
        hw_decoder_load=hw_decoder_load,
    )


def _decoded_window(jpeg: DataNode, start: DataNode, size: int, *, on_gpu: bool, hw_decoder_load: float) -> DataNode:
    """A square cut out of each image.

    A CPU decodes the window alone, which saves a tenth; on GPUs that has been seen to end the process (nvImageCodec
    #55).
    """
    window: dict[str, Any] = {"start": start, "shape": [size, size], "axes": [0, 1]}
    if on_gpu:
        return fn.slice(_decoded(jpeg, on_gpu=True, hw_decoder_load=hw_decoder_load), **window)
    return fn.decoders.image_slice(jpeg, output_type=types.RGB, jpeg_fancy_upsampling=True, **window)


def _image(image: DataNode, pixels: Pixels, views: list[DataNode]) -> DataNode:
    """Window (where it is not cut out already), colours and normalisation of decoded images."""
    normalise: dict[str, Any] = {"dtype": types.FLOAT16 if pixels.half else types.FLOAT, "output_layout": "HWC"}
    if pixels.cuts:
        normalise["mirror"], *more = views
    else:
        start, end, *more = views
        size = [pixels.size, pixels.size]
        image = fn.resize(image, size=size, roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR)
    if pixels.colour:
        brightness, contrast, saturation, hue, *more = more
        image = fn.color_twist(image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    if pixels.blur:
        sigma, *more = more
        image = fn.gaussian_blur(image, sigma=sigma)
    if not pixels.gray:
        mean = [255.0 * value for value in IMAGE_MEAN.tolist()]
        return fn.crop_mirror_normalize(image, mean=mean, std=[255.0] * 3, **normalise)
    channel, mean = more[:2]
    image = fn.slice(image, start=channel, shape=[1], axes=[2])
    image = fn.crop_mirror_normalize(image, mean=mean, std=[255.0], **normalise)
    return fn.cat(image, image, image, axis=2)
