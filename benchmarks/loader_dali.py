"""DALI graphs of the comparison: loose files on the CPU or a GPU, and JPEG decoding alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from loader_data import CROP, SOURCE, STRETCHED, Array, Files, Views
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from fastssl.batch import IMAGE_MEAN

Decode = partial[Any]
"""`fn.decoders.image` with the device that it works on."""

_SIXTEEN_BITS: dict[str, Any] = {"output_type": types.ANY_DATA, "dtype": types.UINT16}
BEYOND = 0xFFFF
"""The name of what lies beyond an image; no instance has it."""
_MEAN = [255.0 * value for value in IMAGE_MEAN.tolist()]


def file_graph(
    files: Files, views: Views, batch: int, threads: int, device_id: int | None = None, hw_decoder_load: float = 0.0
) -> Pipeline:
    """JPEG and PNG files to tensors, all flipped where the view is.

    With a GPU the decoders are `mixed`: it decodes the JPEGs, threads the PNGs, and all the rest happens on it.

    image (N, 227, 227, 3) float32; depth (N, 227, 227, 1) uint16; normal codes (N, 227, 227, 3) uint8; of resized files
    contours (N, 227, 227, 1) uint8, of others instances (N, 228, 228, 1) uint16, not flipped, or `BEYOND`; flip (N,)
    float32.
    """
    pipeline = Pipeline(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    decode = partial(
        fn.decoders.image,
        device="cpu" if device_id is None else "mixed",
        jpeg_fancy_upsampling=True,  # as on the CPU
        hw_decoder_load=hw_decoder_load,
    )
    with pipeline:
        streams = [_read(files, plane, shuffle=views.fixed is None) for plane in range(4)]
        pixels = np.int32 if files.resized else np.float32
        windows = fn.external_source(source=_windows(views, batch, pixels), num_outputs=2, batch=True)
        # Normals stay RGB; the 16-bit planes would be scaled to 8 bits without the extra arguments.
        depth, codes = decode(streams[1], **_SIXTEEN_BITS), decode(streams[2])
        form = _cut if files.resized else _stretch
        image, depth, codes, last = form(decode, streams, depth, codes, windows)
        flip = windows[1] if device_id is None else windows[1].gpu()
        pipeline.set_outputs(image, depth, codes, last, fn.cast(flip, dtype=types.FLOAT))
    pipeline.build()
    return pipeline


def _read(files: Files, plane: int, *, shuffle: bool) -> Any:
    # Four readers with one seed and lists of one length shuffle alike.
    paths = [str(files.paths(sample)[plane]) for sample in range(files.samples)]
    stream, _ = fn.readers.file(files=paths, random_shuffle=shuffle, initial_fill=1024, seed=1, name=f"plane{plane}")
    return stream


def _windows(views: Views, batch: int, dtype: type[np.number[Any]]) -> Iterator[tuple[Array, Array]]:
    """Corner (N, 2), (y, x) in pixels of the stretched image, and flip (N,) int32 of endless batches."""
    endless = iter(views)
    while True:
        seen = list(islice(endless, batch))
        yield (
            np.array([(view.top, view.left) for view in seen], dtype),
            np.array([view.flip for view in seen], np.int32),
        )


def _cut(decode: Decode, streams: list[Any], depth: Any, codes: Any, windows: Any) -> tuple[Any, Any, Any, Any]:
    """Of files that are 256 x 256 already."""
    corner, flip = windows
    window: dict[str, Any] = {"shape": [CROP, CROP], "axes": [0, 1]}
    if decode.keywords["device"] == "cpu":
        image = fn.decoders.image_slice(streams[0], start=corner, **window)
    else:  # decoding a part of an image crashes with some of nvImageCodec's versions on some GPUs (its issue 55)
        image = fn.slice(decode(streams[0]), start=corner, **window)
    image = fn.crop_mirror_normalize(
        image, mean=_MEAN, std=[255.0] * 3, mirror=flip, dtype=types.FLOAT, output_layout="HWC"
    )
    edge = decode(streams[3], output_type=types.ANY_DATA)
    planes = [fn.flip(fn.slice(plane, start=corner, **window), horizontal=flip) for plane in (depth, codes, edge)]
    return image, *planes


def _stretch(decode: Decode, streams: list[Any], depth: Any, codes: Any, windows: Any) -> tuple[Any, Any, Any, Any]:
    """Of files that are 320 x 240: window, stretch and flip in one resize of each plane."""
    corner, flip = windows
    scale = np.array(SOURCE, np.float32) / STRETCHED
    first, last = corner * scale, (corner + CROP) * scale
    turned = fn.cast(flip, dtype=types.FLOAT)
    shift = turned * (last[1] - first[1])
    view: dict[str, Any] = {
        "size": [CROP, CROP],
        "roi_start": fn.stack(first[0], first[1] + shift),
        "roi_end": fn.stack(last[0], last[1] - shift),
    }
    image = fn.resize(decode(streams[0]), interp_type=types.INTERP_LINEAR, antialias=False, **view)
    image = fn.crop_mirror_normalize(image, mean=_MEAN, std=[255.0] * 3, dtype=types.FLOAT, output_layout="HWC")
    depth, codes = (fn.resize(plane, interp_type=types.INTERP_NN, **view) for plane in (depth, codes))
    # One row and column more, for the neighbours; not flipped yet, for these are the right and lower ones. They may lie
    # beyond the image, where this interpolation of DALI 2.4 reads memory that is none of the image's, and crashes in a
    # run out of a hundred; so there are pixels. The contours are not taken here, because the graph takes longer for
    # that than torch.
    padded = [math.ceil((STRETCHED + 1) * side / STRETCHED) for side in SOURCE]
    instance = fn.resize(
        fn.pad(decode(streams[3], **_SIXTEEN_BITS), axes=[0, 1], shape=padded, fill_value=BEYOND),
        size=[CROP + 1, CROP + 1],
        roi_start=first,
        roi_end=(corner + CROP + 1) * scale,
        interp_type=types.INTERP_NN,
    )
    return image, depth, codes, instance


def decode_graph(streams: Iterator[Array], batch: int, threads: int) -> Pipeline:
    """JPEG streams to images (N, 256, 256, 3) uint8, and nothing else."""
    pipeline = Pipeline(batch_size=batch, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    with pipeline:
        jpeg = fn.external_source(source=iter(lambda: list(islice(streams, batch)), None), batch=True)
        pipeline.set_outputs(fn.decoders.image(jpeg))
    pipeline.build()
    return pipeline
