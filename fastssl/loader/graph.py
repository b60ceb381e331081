"""The DALI graph of a domain: encoded bytes in, normalised images (and inflated label blocks) out.

One function builds it for the CPU and for a GPU. Every random choice is an input, made in
`fastssl.loader.plan`, so the graph itself has no state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from fastssl.batch import IMAGE_MEAN

Feed = Callable[[], tuple[Any, ...]]


def build_graph(
    feed: Feed,
    *,
    size: int,
    gray: bool,
    batch_size: int,
    threads: int,
    device_id: int | None = None,
    half: bool = False,
    label_bytes: int | None = None,
) -> Pipeline:
    """Build the pipeline of one domain.

    Args:
        feed: called once per batch, ahead of need; returns the batch's JPEG streams (a list of uint8
            arrays); window starts and ends (N, 2) as `Views.roi` gives them; with `gray` the channels (N, 1) int32
            and their means (N, 1) float32; with `label_bytes` on a GPU the label blocks, a list of uint8 arrays.
            Raises StopIteration at the end.
        size: side of the output in pixels.
        gray: repeat the chosen channel three times instead of the colours.
        batch_size: largest N.
        threads: decoding threads.
        device_id: GPU that decodes and augments; None = the CPU.
        half: float16 images instead of float32.
        label_bytes: size of an inflated label block; None where there are none or the CPU inflates them.

    Returns:
        A pipeline whose outputs are the images, (N, size, size, 3), and on a GPU with labels the inflated blocks,
        (N, label_bytes) uint8.
    """
    on_gpu = device_id is not None
    inflate = on_gpu and label_bytes is not None
    dtype = types.FLOAT16 if half else types.FLOAT
    pipeline = Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    with pipeline:
        jpeg, start, end, *more = fn.external_source(source=feed, num_outputs=3 + 2 * gray + inflate, batch=True)
        # Fancy upsampling is what libjpeg does on the CPU; without it the chroma of the two backends differs.
        image = fn.decoders.image(
            jpeg, device="mixed" if on_gpu else "cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        image = fn.resize(image, size=[size, size], roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR)
        if gray:
            channel, mean = more[:2]
            image = fn.slice(image, start=channel, shape=[1], axes=[2])
            image = fn.crop_mirror_normalize(image, mean=mean, std=[255.0], dtype=dtype, output_layout="HWC")
            image = fn.cat(image, image, image, axis=2)
        else:
            mean = [255.0 * value for value in IMAGE_MEAN.tolist()]
            image = fn.crop_mirror_normalize(image, mean=mean, std=[255.0] * 3, dtype=dtype, output_layout="HWC")
        outputs = [image]
        if inflate:
            outputs.append(fn.decoders.inflate(more[-1].gpu(), shape=[label_bytes], dtype=types.UINT8))
        pipeline.set_outputs(*outputs)
    return pipeline


def channel_inputs(channel: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The graph's inputs for the channels 0 to 2 of N gray images: their numbers and means, (N, 1) each."""
    return channel[:, None].astype(np.int32), 255.0 * IMAGE_MEAN[channel][:, None]
